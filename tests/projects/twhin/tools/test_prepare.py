"""The command, in this process; once as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from core.config.config_load import load_config_from_yaml
from projects.twhin.config import TwhinConfig
from projects.twhin.data.edges import EdgeDataset
from projects.twhin.tools.prepare import main

TRIPLES = "".join(f"e{number}\tr{number % 3}\te{(number * 7) % 50}\n" for number in range(200))
FAVES = "user_index,tweet_index,time_chunk\n" + "".join(f"{1 + n % 50},{1 + n % 31},{n % 10}\n" for n in range(400))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "triples.tsv").write_text(TRIPLES)
    (tmp_path / "bad.tsv").write_text(TRIPLES + "a\tb\n")
    (tmp_path / "faves.csv").write_text(FAVES)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
    return main()


@pytest.mark.parametrize("kind", ["triples", "fave-graph"])
def test_the_configuration_fits_the_edges(files, monkeypatch, capsys, kind):
    out = files / "new" / "graph"
    given: tuple[object, ...] = ("--input", files / "faves.csv", "--validation_from", "8")
    if kind == "triples":
        given = ("--train", files / "triples.tsv", "--validation", files / "triples.tsv")
    assert call(monkeypatch, kind, "--out", out, *given) == 0
    config = load_config_from_yaml(TwhinConfig, out / "config.yaml")
    told = capsys.readouterr().out
    assert f"--config {out / 'config.yaml'}" in told
    for table in config.model.embeddings.tables:
        assert f"{table.name} of num_embeddings {table.num_embeddings}" in told
    names = [relation.name for relation in config.model.relation_list]
    assert (out / "relations.txt").read_text().splitlines() == names
    for path, data in config.data_sets().items():
        dataset = EdgeDataset.open(data, config.model.build_relations(), path)
        edges = sum(int(placed.batch.weights.sum()) for placed in dataset.reader(0, 1).evaluate())
        assert edges == {"triples": 200, "fave-graph": 320 if path == "train_data" else 80}[kind]


def test_what_goes_wrong_leaves_nothing(files, monkeypatch):
    before = sorted(files.rglob("*"))
    for arguments, problem in (
        (("triples", "--train", files / "bad.tsv"), "bad.tsv:201: 2 column"),
        (("triples", "--train", files / "none"), "No such file"),
        (("fave-graph", "--input", files / "none"), "no file matches"),
        (("fave-graph", "--input", files / "faves.csv", "--test_from", "10"), "no edge is left for test"),
        (
            ("fave-graph", "--input", files / "faves.csv", "--validation_from", "3", "--test_from", "3"),
            "--validation_from 3 is not before --test_from 3",
        ),
        (("triples", "--train", files / "triples.tsv", "--entity_type", "a/b"), "'a/b' can't be the name of a table"),
        (("triples",), "required: --train"),
    ):
        with pytest.raises(UserError, match=problem):
            call(monkeypatch, *arguments, "--out", files / "graph")
        assert sorted(files.rglob("*")) == before
    with pytest.raises(UserError, match="exists already"):
        call(monkeypatch, "triples", "--train", files / "triples.tsv", "--out", files)
    assert sorted(files.rglob("*")) == before


def test_as_a_user_runs_it(files):
    command = [sys.executable, "-m", "projects.twhin.tools.prepare", "triples", "--out", str(files / "graph")]
    failed = subprocess.run([*command, "--train", str(files / "bad.tsv")], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == (
        f"error: {files / 'bad.tsv'}:201: 2 column(s) found, 3 separated by tabs expected: 'a\\tb'\n"
    )
