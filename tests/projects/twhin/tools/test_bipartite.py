import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from projects.twhin.data.vocabulary import read_vocabulary
from projects.twhin.tools.bipartite import FORMATS, SplitChunks, prepare_bipartite
from projects.twhin.tools.config_writer import PreparedGraph
from tests.support.little_memory import room_for

FAVE = FORMATS["fave-graph"]
ALL_TRAIN = SplitChunks(None, None)


def make_edges(count: int, seed: int = 0) -> pa.Table:
    """Return edges whose indices start at 1 and have gaps."""
    rng = np.random.default_rng(seed)
    columns = {"user_index": 3 * rng.integers(1, 50, count), "tweet_index": 1 + rng.integers(400, size=count) ** 2}
    return pa.table(columns | {"time_chunk": rng.integers(1, 11, count)})


def write(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=70)
        return path
    separator = "\t" if ".tsv" in path.name else ","
    with pa.CompressedOutputStream(path, "gzip") if path.suffix == ".gz" else pa.OSFile(str(path), "wb") as file:
        pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(delimiter=separator, quoting_header="needed"))
    return path


def edges_of(out: Path, split: str) -> list[tuple[int, int]]:
    """Return the edges of a split as pairs of indices of the input."""
    users, tweets = (read_vocabulary(out / "vocabulary" / f"{name}.parquet").to_numpy() for name in ("user", "tweet"))
    table = pq.read_table(out / split)
    assert set(table.column("rel").to_pylist()) == {0}
    return list(zip(users[table["lhs"].to_numpy()].tolist(), tweets[table["rhs"].to_numpy()].tolist(), strict=True))


def prepare(out: Path, *paths: Path, chunks: SplitChunks = ALL_TRAIN) -> PreparedGraph:
    out.mkdir()
    return prepare_bipartite(out, paths, FAVE, chunks)


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.tsv", "x.csv.gz"])
def test_time_chunks_split_the_edges(tmp_path, name):
    table = make_edges(300)
    graph = prepare(tmp_path / "out", write(tmp_path / name, table), chunks=SplitChunks(7, 9))
    rows = table.to_pylist()
    for split, chunks in (("train", range(1, 7)), ("validation", range(7, 9)), ("test", range(9, 11))):
        expected = [(row["user_index"], row["tweet_index"]) for row in rows if row["time_chunk"] in chunks]
        assert edges_of(tmp_path / "out", split) == expected
        assert graph.num_edges[split] == len(expected)
    # Rows have no gaps, although the indices have.
    distinct = {table: len({row[f"{table}_index"] for row in rows}) for table in ("user", "tweet")}
    assert graph.tables == distinct
    assert [relation._asdict() for relation in graph.relations] == [{"name": "fave", "lhs": "user", "rhs": "tweet"}]


def test_files_of_different_formats_share_the_vocabularies(tmp_path):
    tables = [make_edges(100, seed) for seed in range(3)]
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.write(write(tmp_path / "c.csv", tables[2].append_column("more", pa.array(["?"] * 100))), "c.csv")
    paths = [write(tmp_path / "a.parquet", tables[0]), write(tmp_path / "b.csv", tables[1]), tmp_path / "c.zip"]
    graph = prepare(tmp_path / "out", *paths, chunks=SplitChunks(None, 5))
    rows = [row for table in tables for row in table.to_pylist()]
    for split, chunks in (("train", range(1, 5)), ("test", range(5, 11))):
        expected = [(row["user_index"], row["tweet_index"]) for row in rows if row["time_chunk"] in chunks]
        assert edges_of(tmp_path / "out", split) == expected
    assert list(graph.num_edges) == ["train", "test"]


def test_follow_graph_has_users_and_authors(tmp_path):
    table = make_edges(20).rename_columns(["user_index", "author_index", "time_chunk"])
    graph = prepare_bipartite(tmp_path, [write(tmp_path / "x.csv", table)], FORMATS["follow-graph"], ALL_TRAIN)
    columns = table.to_pydict()
    assert graph.tables == {"user": len(set(columns["user_index"])), "author": len(set(columns["author_index"]))}
    assert graph.relations == [("follow", "user", "author")]


@pytest.mark.parametrize(
    ("chunks", "empty"),
    [(SplitChunks(11, None), "validation"), (SplitChunks(1, None), "train"), (SplitChunks(5, 11), "test")],
)
def test_split_without_edges_is_an_error(tmp_path, chunks, empty):
    with pytest.raises(UserError, match=rf"for {empty}: .* 1 to 10\b.*--validation_from.*--test_from"):
        prepare(tmp_path / "out", write(tmp_path / "x.csv", make_edges(300)), chunks=chunks)


GOOD: dict[str, Any] = {"user_index": [1, 2], "tweet_index": [3, 4], "time_chunk": [0, 1]}


def message_of(out: Path, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepare(out, path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("columns", "facts"),
    [
        ({"user_index": [1], "tweet_index": [3]}, [": no column 'time_chunk'", "user_index, tweet_index"]),
        (GOOD | {"user_index": ["1", "2"]}, [": column 'user_index': ", "string", "integers"]),
        (GOOD | {"tweet_index": [3, None]}, [": row 1 (counted from 0): column 'tweet_index': ", "null"]),
        (
            GOOD | {"tweet_index": [3, -4]},
            [": row 1 (counted from 0): column 'tweet_index': ", "-4", "0 to 2147483647"],
        ),
        (
            GOOD | {"user_index": [2**31, 1]},
            [": row 0 (counted from 0): column 'user_index': ", "2147483648", "0 to 2147483647"],
        ),
        (
            {name: pa.array([], pa.int64()) for name in GOOD},
            [": no edges", "user_index, tweet_index, time_chunk"],
        ),
    ],
)
def test_errors_in_parquet_name_the_row_and_column(tmp_path, columns, facts):
    path = write(tmp_path / "x.parquet", pa.table(columns))
    message = message_of(tmp_path / "out", path)
    assert message.startswith(f"{path}{facts[0]}")
    assert [fact for fact in facts if fact not in message] == []


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", [": no edges", "user_index, tweet_index, time_chunk"]),
        ("user_index,tweet_index,time_chunk\n", [": no edges"]),
        ("1,2,3\n", [":1: no column 'user_index'", "1, 2, 3"]),
        (
            "user_index,user_index,tweet_index,time_chunk\n1,1,2,3\n",
            [":1: several columns 'user_index'", "user_index, user_index, tweet_index, time_chunk"],
        ),
        (
            "user_index,tweet_index,time_chunk\n\n1,2,3\n1,-2,3\n",
            [":4: column 'tweet_index': ", "-2", "from 0"],
        ),
        ("user_index,tweet_index,time_chunk\n1,2,3\n1,x,3\n", [":3: ", "tweet_index", "'x'", "'1,x,3'"]),
        ("\n\r\nuser_index,tweet_index,time_chunk\n\n1,2,3\n1,x,3\n", [":6: ", "'x'"]),
        ("\n\n1,2,3", [":3: no column 'user_index'"]),
        ("\n\n", [": no edges"]),
        ("user_index,tweet_index,time_chunk\r1,2,3\r", [":1: ", "carriage return"]),
        ("user_index,tweet_index,time_chunk\n1,2\n", [":2: ", "2 column(s)", "3 separated by commas", "'1,2'"]),
    ],
)
def test_errors_in_text_name_the_line_and_column(tmp_path, text, facts):
    path = tmp_path / "x.csv"
    path.write_text(text)
    message = message_of(tmp_path / "out", path)
    assert message.startswith(f"{path}{facts[0]}")
    assert [fact for fact in facts if fact not in message] == []


def test_unreadable_file_is_an_error(tmp_path):
    message = message_of(tmp_path / "out", tmp_path / "none.csv")
    assert message.startswith(f"{tmp_path / 'none.csv'}: cannot read")
    assert "No such file or directory" in message
    (tmp_path / "x").write_bytes(b"PAR1" + bytes(100))
    assert message_of(tmp_path / "again", tmp_path / "x").startswith(f"{tmp_path / 'x'}: cannot read")


def test_an_index_whose_table_does_not_fit_into_memory_is_refused(tmp_path):
    table = pa.table({"user_index": [1, 2**31 - 1], "tweet_index": [1, 2], "time_chunk": [1, 1]})
    path = write(tmp_path / "x.parquet", table)
    with room_for(2**29), pytest.raises(UserError, match=r"found the index 2147483647: .* needs 8\.0 GiB, but the add"):
        prepare(tmp_path / "out", path)
