import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.files.embedding_files import write_embeddings
from common.files.table_writer import TableWriter
from common.reader.column import Column
from common.reader.files import matching_files
from common.reader.parquet import ParquetTable
from common.reader.vectors import with_lists
from projects.home.recap.data.config import RecapDataConfig
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.data.parquet import Widths, recap_columns, write_schema_json
from projects.home.recap.tools.join_embeddings.__main__ import main
from projects.home.recap.tools.join_embeddings.join import EmbeddingSource, join_embeddings
from tests.support.damage import overwrite_page
from tests.support.little_memory import room_for

USERS = {3: [0.5, -1.0, 2.0], 2**60 + 1: [4.0, 0.0, 0.25], 10: [-3.0, 1.0, 1.0]}
AUTHORS = {"10": [7.0, 8.0], "eve": [9.0, 9.0], "-4": [0.5, 0.5], "010": [1.0, 1.0]}
USER_IDS = [10, 99, 3, 10, 2**60 + 1, 2**60, 3]
AUTHOR_IDS = [-4, 10, 10, 5, 0, -4, 10]


def write_table(folder: Path, embedding: int = 0) -> Path:
    """Write a table of two files, with ids and a label."""
    columns = recap_columns(Widths(2, 1, embedding=embedding), ["clicked"], ids=True)
    rng = np.random.default_rng(0)
    for split, rows in (("train", slice(0, 4)), ("validation", slice(4, 7))):
        (folder / split).mkdir(parents=True)
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "continuous": rng.standard_normal((7, 2), np.float32)[rows],
            "binary": rng.integers(0, 2, (7, 1)).astype(np.uint8)[rows],
            "meta__user_id": np.array(USER_IDS)[rows],
            "meta__author_id": np.array(AUTHOR_IDS)[rows],
            "meta__tweet_id": np.arange(7)[rows],
            "clicked": rng.integers(0, 2, 7).astype(np.int8)[rows],
        }
        for column in columns:
            if column.name.endswith("embedding"):
                arrays[column.name] = np.ones((7, embedding), np.float32)[rows]
        with TableWriter(folder / split / "part-00000.parquet", columns, row_group_size=3) as writer:
            writer.write(arrays)
    write_schema_json(folder / "schema.json", columns)
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, EmbeddingSource]:
    for name, embeddings in (("user", USERS), ("author", AUTHORS)):
        entities = pa.array(list(embeddings))
        write_embeddings(tmp_path / f"{name}.parquet", entities, np.array(list(embeddings.values()), np.float32))
    return {
        "user_embedding": EmbeddingSource("meta__user_id", str(tmp_path / "user.parquet")),
        "author_embedding": EmbeddingSource("meta__author_id", str(tmp_path / "author.parquet")),
    }


def read(path: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = with_lists(pq.read_table(path)).to_pydict()
    return columns


def lengths(folder: Path) -> dict[str, int]:
    return {e["feature_name"]: e["length"] for e in json.loads((folder / "schema.json").read_text())["schema"]}


@pytest.mark.parametrize("embedding", [0, 5])
def test_embeddings_are_looked_up_by_id_and_other_columns_stay(tmp_path, sources, embedding):
    data = write_table(tmp_path / "data", embedding)
    joined = join_embeddings(data, out := tmp_path / "out", sources)
    expected_users = [USERS.get(one, [0.0] * 3) for one in USER_IDS]
    expected_authors = [AUTHORS.get(str(one), [0.0] * 2) for one in AUTHOR_IDS]
    for split, rows in (("train", slice(0, 4)), ("validation", slice(4, 7))):
        before, after = (read(folder / split / "part-00000.parquet") for folder in (data, out))
        assert after.pop("user_embedding") == expected_users[rows]
        assert after.pop("author_embedding") == expected_authors[rows]
        kept = {name: values for name, values in before.items() if name not in sources}
        assert after == kept
        footers = [pq.read_metadata(folder / split / "part-00000.parquet") for folder in (data, out)]
        sizes = [[f.row_group(group).num_rows for group in range(f.num_row_groups)] for f in footers]
        assert sizes[0] == sizes[1]
    assert {column: (result.num_rows, result.num_missing) for column, result in joined.items()} == {
        "user_embedding": (7, 2),
        "author_embedding": (7, 2),
    }
    assert lengths(out) == lengths(data) | {"user_embedding": 3, "author_embedding": 2}


def test_the_heavy_ranker_reads_the_joined_table(tmp_path, sources):
    join_embeddings(write_table(tmp_path / "data"), out := tmp_path / "out", sources)
    schema = {"schema_path": str(out / "schema.json")}
    values = {
        "inputs": f"{out}/*/*.parquet",
        "global_batch_size": 7,
        "lanes": 1,
        "seg_dense_schema": schema,
        "tasks": {"clicked": {}},
    }
    dataset = RecapDataset.open(RecapDataConfig.model_validate(values), ["clicked"], "train_data", evaluation=True)
    (positioned,) = dataset.reader(0, 1).evaluate()
    batch = positioned.batch
    assert batch.user_embedding is not None
    assert batch.author_embedding is not None
    assert batch.user_embedding.tolist() == [USERS.get(one, [0.0] * 3) for one in USER_IDS]
    assert batch.author_embedding.tolist() == [AUTHORS.get(str(one), [0.0] * 2) for one in AUTHOR_IDS]


def test_ids_can_be_text(tmp_path, sources):
    (data := tmp_path / "data").mkdir()
    table = pa.table({"meta__user_id": ["3", "x", str(2**60 + 1)], "meta__author_id": ["eve", "010", "10"]})
    pq.write_table(table, data / "a.parquet")
    write_schema_json(data / "schema.json", recap_columns(Widths(2, 1)))
    join_embeddings(data, tmp_path / "out", sources)
    columns = read(tmp_path / "out" / "a.parquet")
    assert columns["user_embedding"] == [USERS[3], [0.0] * 3, USERS[2**60 + 1]]
    assert columns["author_embedding"] == [AUTHORS["eve"], AUTHORS["010"], AUTHORS["10"]]


def test_other_embeddings_of_the_same_size_change_the_fingerprint(tmp_path, sources):
    """A resumed run must detect the change."""
    data = write_table(tmp_path / "data")

    def fingerprint(out: Path) -> str:
        join_embeddings(data, out, sources)
        return ParquetTable(matching_files(f"{out}/*/*.parquet"), {}).fingerprint

    first, second = fingerprint(tmp_path / "1"), fingerprint(tmp_path / "2")
    write_embeddings(tmp_path / "user.parquet", pa.array(list(USERS)), np.ones((3, 3), np.float32))
    assert first == second != fingerprint(tmp_path / "3")


def test_user_errors_leave_no_output(tmp_path, sources):
    data = write_table(tmp_path / "data")
    user = sources["user_embedding"].path

    def message(data: Path = data, out: Path = tmp_path / "out", **changes: EmbeddingSource) -> str:
        with pytest.raises(UserError) as caught:
            join_embeddings(data, out, changes or sources)
        assert not out.exists()
        assert sorted(path.name for path in data.parent.iterdir() if path.name.startswith(".")) == []
        return str(caught.value)

    where = f"{data}/train/part-00000.parquet: row group 0"
    no_column = message(user_embedding=EmbeddingSource("meta__user", user))
    assert no_column.startswith(f"{where}: no id column 'meta__user'")
    assert " binary, clicked, " in no_column
    assert message(user_embedding=EmbeddingSource("continuous", user)).startswith(
        f"{where}: column 'continuous' has type fixed_size_"
    )
    assert message(user_embedding=EmbeddingSource("meta__tweet_id", user + "x")).startswith(f"{user}x: no such file")
    (empty := tmp_path / "empty").mkdir()
    for folder, files in ((Path(user).parent, "author.parquet, user.parquet"), (empty, "none")):
        is_directory = message(user_embedding=EmbeddingSource("meta__user_id", str(folder)))
        assert is_directory.startswith(f"{folder}: ")
        assert is_directory.endswith(files)
    is_file = message(data=data / "schema.json")
    assert is_file.startswith(f"--data {data}/schema.json: is a file")
    assert "schema.json and *.parquet files" in is_file
    assert message(data=data / "no").startswith(f"--data {data}/no: no such directory (current directory: ")
    no_schema = message(data=empty)
    assert f"{empty}/schema.json" in no_schema
    assert "No such file or directory" in no_schema
    write_embeddings(tmp_path / "names.parquet", pa.array(["ann", "bob"]), np.ones((2, 3), np.float32))
    no_integer = message(user_embedding=EmbeddingSource("meta__user_id", str(tmp_path / "names.parquet")))
    assert no_integer.startswith(f"{tmp_path}/names.parquet: no entity is an integer")
    write_embeddings(tmp_path / "far.parquet", pa.array([77]), np.ones((1, 3), np.float32))
    none_matches = message(user_embedding=EmbeddingSource("meta__user_id", str(tmp_path / "far.parquet")))
    assert none_matches.startswith(f"--user_embedding meta__user_id={tmp_path}/far.parquet: none of the ids ")
    assert " 7 rows " in none_matches
    assert message(out=data / "joined").startswith(f"--out {data}/joined is inside --data {data}")
    damaged = data / "validation" / "part-00000.parquet"
    damaged.write_text("x")
    assert message().startswith(f"{damaged}: cannot read ")
    shutil.rmtree(data / "train")
    damaged.unlink()
    assert message().startswith(f"--data {data}: no *.parquet files ")
    (data / "schema.json").unlink()
    assert f"{data}/schema.json" in message()


def test_a_null_id_is_an_error(tmp_path, sources):
    (data := tmp_path / "data").mkdir()
    pq.write_table(pa.table({"meta__user_id": [3, None]}), data / "a.parquet")
    write_schema_json(data / "schema.json", recap_columns(Widths(2, 1)))
    with pytest.raises(UserError, match=r"a.parquet: row group 0, row 1 .*'meta__user_id' is null"):
        join_embeddings(data, tmp_path / "out", {"user_embedding": sources["user_embedding"]})


def test_the_command_reports_row_counts_and_user_errors(tmp_path, sources, monkeypatch, capsys):
    data, user = write_table(tmp_path / "data"), sources["user_embedding"].path

    def start(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["", "--data", str(data), "--out", str(tmp_path / "out"), *arguments])
        return main()

    assert start("--user_embedding", f"meta__user_id={user}", "--user_eng_embedding", f"meta__author_id={user}") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == ["user_embedding", "3", "meta__user_id", user, "7", "2", "(28.6%)"]
    assert lines[3] == ["user_eng_embedding", "3", "meta__author_id", user, "7", "4", "(57.1%)"]
    for arguments, message in [
        ((), "--user_embedding, --user_eng_embedding, --author_embedding"),
        (("--user_embedding", "meta__user_id"), "'meta__user_id' is not of the form ID_COLUMN=FILE"),
        (("--user_embedding", f"meta__user_id={user}"), f"--out {tmp_path}/out"),
    ]:
        with pytest.raises(UserError) as caught:
            start(*arguments)
        assert message in str(caught.value)


@pytest.mark.parametrize("column", ["continuous", "meta__user_id", "clicked"])
def test_an_overwritten_page_of_the_table_is_an_error(tmp_path, sources, column):
    data = write_table(tmp_path / "data")
    overwrite_page(path := data / "train" / "part-00000.parquet", column, count=3)
    with pytest.raises(UserError, match=f"^{path}: cannot read this file"):
        join_embeddings(data, tmp_path / "out", sources)
    assert not (tmp_path / "out").exists()


def test_an_overwritten_page_of_joined_embeddings_is_an_error(tmp_path, sources):
    join_embeddings(write_table(tmp_path / "data"), tmp_path / "out", sources)
    overwrite_page(path := tmp_path / "out" / "train" / "part-00000.parquet", "user_embedding")
    table = ParquetTable(matching_files(str(path)), {"e": Column("user_embedding", width=3)})
    with pytest.raises(UserError, match="cannot read this row group"):
        table.decode(0)


SIGNED = [
    -(2**63),
    -(2**63) + 1,
    -(10**18),
    -9,
    -1,
    0,
    1,
    9,
    10**17,
    10**18 - 1,
    10**18,
    1234567890123456789,
    2**63 - 1,
]
UNSIGNED = [0, 1, 9, 10**18, 2**63 - 1, 2**63, 10**19, 2**64 - 1]


@pytest.mark.parametrize("entity_type", [pa.string(), pa.int64(), pa.uint64(), pa.int32()])
@pytest.mark.parametrize("id_type", [pa.int64(), pa.uint64(), pa.int8(), pa.string()])
def test_every_id_finds_the_entity_with_the_same_number(tmp_path, entity_type, id_type):
    def holds(kind: pa.DataType, number: int) -> bool:
        try:
            pa.scalar(number, kind)
        except (pa.ArrowInvalid, OverflowError):
            return False
        return True

    def typed(numbers: list[int], kind: pa.DataType) -> pa.Array:
        if kind == pa.string():
            return pa.array([str(number) for number in numbers])
        return pa.array([number for number in numbers if holds(kind, number)], kind)

    numbers = sorted({*SIGNED, *UNSIGNED})
    known = typed([*numbers[::-2], 8, 5], entity_type)
    decoys = ["007", "+1", "-0", " 9", "1e18", "9.0", "9" * 30, "x", ""] if entity_type == pa.string() else []
    entities = pa.concat_arrays([known, pa.array(decoys, entity_type)])
    embeddings = np.arange(1, len(entities) + 1, dtype=np.float32)[:, None]
    write_embeddings(path := tmp_path / "user.parquet", entities, embeddings)
    ids = typed(numbers, id_type)
    (data := tmp_path / "data").mkdir()
    pq.write_table(pa.table({"meta__user_id": ids}), data / "a.parquet", row_group_size=4)
    write_schema_json(data / "schema.json", recap_columns(Widths(2, 1)))
    join_embeddings(data, tmp_path / "out", {"user_embedding": EmbeddingSource("meta__user_id", str(path))})
    rows = {str(entity): [float(row + 1)] for row, entity in enumerate(entities.to_pylist())}
    assert read(tmp_path / "out" / "a.parquet")["user_embedding"] == [
        rows.get(str(one), [0.0]) for one in ids.to_pylist()
    ]


@pytest.mark.parametrize("found", [2, 3])
def test_a_warning_if_most_ids_have_no_embedding(tmp_path, sources, found, caplog):
    (data := tmp_path / "data").mkdir()
    ids = [10] * found + [98, 99, 97, 96, 95, 94][: 6 - found]
    pq.write_table(pa.table({"meta__user_id": ids, "meta__author_id": [10] * 6}), data / "a.parquet")
    write_schema_json(data / "schema.json", recap_columns(Widths(2, 1)))
    join_embeddings(data, tmp_path / "out", sources)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (1 if found == 2 else 0)
    if warnings:
        assert warnings[0].startswith("--user_embedding meta__user_id=")
        assert "most of the ids, those of 4 of 6 rows, have no embedding" in warnings[0]


def test_embeddings_that_do_not_fit_into_memory_are_refused(tmp_path):
    data = write_table(tmp_path / "data")
    write_embeddings(path := tmp_path / "user.parquet", None, np.zeros((2**17, 256), np.float32))
    sources = {"user_embedding": EmbeddingSource("meta__user_id", str(path))}
    problem = rf"^{path}: holding 131,072 embeddings of 256 numbers needs 128\.0 MiB, but the address space"
    with room_for(100 * 2**20), pytest.raises(UserError, match=problem):
        join_embeddings(data, tmp_path / "out", sources)
    assert not (tmp_path / "out").exists()
