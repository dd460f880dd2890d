"""Programs that write a directory try it before any work, and leave nothing if it cannot be written."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from projects.home.recap.data.parquet import Widths, recap_columns, write_schema_json
from projects.home.recap.tools import convert, movielens
from projects.home.recap.tools import generate as recap_generate
from projects.home.recap.tools.join_embeddings.join import EmbeddingSource, join_embeddings
from projects.twhin.tools import generate as twhin_generate
from projects.twhin.tools import prepare
from tests.projects.home.recap.tools.conversion.test_examples import SCHEMA
from tests.projects.home.recap.tools.conversion.test_tfrecords import WRITTEN_BY_TENSORFLOW

# Inputs that the work would not accept, or sizes that it would not complete, show that it did not begin.


def generate_rows(out: Path) -> None:
    recap_generate.generate(out, recap_generate.PRESETS["production"], 0, (10**12, 10**12))


def generate_graph(out: Path) -> None:
    twhin_generate.generate(out, 0, 10**12, 10**12, 10**12)


def convert_movielens(out: Path) -> None:
    movielens.prepare(Path("missing"), out)


def join(out: Path) -> None:
    data = Path("data").absolute()
    data.mkdir()
    write_schema_json(data / "schema.json", recap_columns(Widths(1, 1, 1), ["like"]))
    pq.write_table(pa.table({"id": np.arange(3)}), data / "a.parquet")
    join_embeddings(data, out, {"user_embedding": EmbeddingSource("id", "missing.parquet")})


def prepare_triples(out: Path) -> None:
    sys.argv[1:] = ["triples", "--train", "missing.tsv", "--out", str(out)]
    prepare.main()


def convert_records(out: Path) -> None:
    source = str(WRITTEN_BY_TENSORFLOW / "part-00000.gz")
    sys.argv[1:] = ["--schema", str(SCHEMA), "--inputs", source, "--out", str(out), "--processes", "1"]
    convert.main()


PROGRAMS = [generate_rows, generate_graph, convert_movielens, join, prepare_triples, convert_records]


def a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "out"


def a_circle_of_links(folder: Path) -> Path:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return folder / "a"


def a_long_name(folder: Path) -> Path:
    return folder / ("x" * 256)


def not_utf8(folder: Path) -> Path:
    return folder / "caf\udce9"


def in_a_virtual_file_system(_: Path) -> Path:
    return Path("/proc/out")


TARGETS = [a_file, below_a_file, a_circle_of_links, a_long_name, not_utf8, in_a_virtual_file_system]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("target", TARGETS)
def test_an_impossible_directory_is_reported_before_the_work(
    tmp_path, monkeypatch, program: Callable[[Path], None], target: Callable[[Path], Path]
):
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.chdir(tmp_path)
    out = target(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"^--out "):
        program(out)
    assert {path.name for path in tmp_path.iterdir()} - before <= {"data"}
