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
from projects.twhin.tools.bipartite import LAYOUTS, Chunks, prepare_bipartite
from projects.twhin.tools.ready_config import Graph

FAVE = LAYOUTS["fave-graph"]
ALL_TRAIN = Chunks(None, None)


def make_edges(count: int, seed: int = 0) -> pa.Table:
    """Indices from 1 on, with holes."""
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
    """As they are called in the input."""
    users, tweets = (read_vocabulary(out / "vocabulary" / f"{name}.parquet").to_numpy() for name in ("user", "tweet"))
    table = pq.read_table(out / split)
    assert set(table.column("rel").to_pylist()) == {0}
    return list(zip(users[table["lhs"].to_numpy()].tolist(), tweets[table["rhs"].to_numpy()].tolist(), strict=True))


def prepared(out: Path, *paths: Path, chunks: Chunks = ALL_TRAIN) -> Graph:
    out.mkdir()
    return prepare_bipartite(out, paths, FAVE, chunks)


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.tsv", "x.csv.gz"])
def test_edges_by_time_chunk(tmp_path, name):
    table = make_edges(300)
    graph = prepared(tmp_path / "out", write(tmp_path / name, table), chunks=Chunks(7, 9))
    rows = table.to_pylist()
    for split, chunks in (("train", range(1, 7)), ("validation", range(7, 9)), ("test", range(9, 11))):
        expected = [(row["user_index"], row["tweet_index"]) for row in rows if row["time_chunk"] in chunks]
        assert edges_of(tmp_path / "out", split) == expected
        assert graph.num_edges[split] == len(expected)
    # Rows are given out without holes.
    distinct = {table: len({row[f"{table}_index"] for row in rows}) for table in ("user", "tweet")}
    assert graph.tables == distinct
    assert [relation._asdict() for relation in graph.relations] == [{"name": "fave", "lhs": "user", "rhs": "tweet"}]


def test_several_files_of_different_kinds_share_the_vocabularies(tmp_path):
    tables = [make_edges(100, seed) for seed in range(3)]
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.write(write(tmp_path / "c.csv", tables[2].append_column("more", pa.array(["?"] * 100))), "c.csv")
    paths = [write(tmp_path / "a.parquet", tables[0]), write(tmp_path / "b.csv", tables[1]), tmp_path / "c.zip"]
    graph = prepared(tmp_path / "out", *paths, chunks=Chunks(None, 5))
    expected = [row for table in tables for row in table.to_pylist() if row["time_chunk"] < 5]
    assert edges_of(tmp_path / "out", "train") == [(row["user_index"], row["tweet_index"]) for row in expected]
    assert list(graph.num_edges) == ["train", "test"]


def test_the_columns_of_the_follow_graph(tmp_path):
    table = make_edges(20).rename_columns(["user_index", "author_index", "time_chunk"])
    graph = prepare_bipartite(tmp_path, [write(tmp_path / "x.csv", table)], LAYOUTS["follow-graph"], ALL_TRAIN)
    assert list(graph.tables) == ["user", "author"]
    assert graph.relations[0] == ("follow", "user", "author")


@pytest.mark.parametrize("chunks", [Chunks(11, None), Chunks(1, None), Chunks(5, 11)])
def test_a_split_without_edges(tmp_path, chunks):
    with pytest.raises(UserError, match=r"no edge is left for .*: the time chunks are 1 to 10; give other"):
        prepared(tmp_path / "out", write(tmp_path / "x.csv", make_edges(300)), chunks=chunks)


GOOD: dict[str, Any] = {"user_index": [1, 2], "tweet_index": [3, 4], "time_chunk": [0, 1]}


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"user_index": [1], "tweet_index": [3]}, ": no column 'time_chunk' (or several); its columns: user_index, t"),
        (GOOD | {"user_index": ["1", "2"]}, ": column 'user_index': string found, integers expected"),
        (
            GOOD | {"tweet_index": [3, None]},
            ": row 1 (counted from 0): column 'tweet_index': null found, every row",
        ),
        (
            GOOD | {"tweet_index": [3, -4]},
            ": row 1 (counted from 0): column 'tweet_index': -4 found, numbers from",
        ),
        (
            GOOD | {"user_index": [2**31, 1]},
            ": row 0 (counted from 0): column 'user_index': 2147483648 found, ",
        ),
        ({name: pa.array([], pa.int64()) for name in GOOD}, ": not one edge"),
    ],
)
def test_mistakes_in_parquet(tmp_path, columns, problem):
    path = write(tmp_path / "x.parquet", pa.table(columns))
    with pytest.raises(UserError) as caught:
        prepared(tmp_path / "out", path)
    assert str(caught.value).startswith(f"{path}{problem}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ": not one edge"),
        ("user_index,tweet_index,time_chunk\n", ": not one edge"),
        ("1,2,3\n", ":1: no column 'user_index' (or several); its columns: 1, 2, 3"),
        ("user_index,tweet_index,time_chunk\n\n1,2,3\n1,-2,3\n", ":4: column 'tweet_index': -2 found, numbers from 0"),
        ("user_index,tweet_index,time_chunk\n1,2,3\n1,x,3\n", ":3: 'x' found, the tweet_index is a whole number"),
        ("user_index,tweet_index,time_chunk\n1,2\n", ":2: 2 column(s) found, 3 separated by commas expected: '1,2'"),
    ],
)
def test_mistakes_in_text(tmp_path, text, problem):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        prepared(tmp_path / "out", path)
    assert str(caught.value).startswith(f"{path}{problem}")


def test_a_file_that_can_not_be_read(tmp_path):
    with pytest.raises(UserError) as caught:
        prepared(tmp_path / "out", tmp_path / "none.csv")
    assert str(caught.value) == f"{tmp_path / 'none.csv'}: can't be read: No such file or directory"
    (tmp_path / "x").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(UserError, match=f"^{tmp_path / 'x'}: can't be read: "):
        prepared(tmp_path / "again", tmp_path / "x")
