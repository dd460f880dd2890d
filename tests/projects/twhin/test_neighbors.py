import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.errors import UserError
from common.files.embedding_files import EmbeddingFile, write_embeddings
from projects.twhin import neighbors
from projects.twhin.neighbors import nearest
from tests.support.root import ROOT

# Row groups of 8 MiB have so many rows of this dimension, and the last one is not full.
DIM, ROWS = 512, 9_000


def expected(values: np.ndarray[Any, Any], query: np.ndarray[Any, Any], own: int | None, k: int, comparator: str):
    """By sorting all scores in float64."""
    rows, one = values.astype(np.float64), query.astype(np.float64)
    scores = {
        "dot": lambda: [float(np.dot(row, one)) for row in rows],
        "cos": lambda: [float(np.dot(row, one) / np.linalg.norm(row) / np.linalg.norm(one)) for row in rows],
        "l2": lambda: [-float(np.linalg.norm(row - one)) for row in rows],
    }[comparator]()
    order = sorted((i for i in range(len(rows)) if i != own), key=lambda i: (-scores[i], i))[:k]
    return order, [scores[i] for i in order]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> tuple[EmbeddingFile, np.ndarray[Any, Any]]:
    values = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)
    path = tmp_path_factory.mktemp("export") / "user.parquet"
    write_embeddings(path, None, values)
    return EmbeddingFile(path), values


@pytest.mark.parametrize("comparator", ["cos", "dot", "l2"])
def test_the_nearest_are_those_of_a_full_sort(table, comparator):
    file, values = table
    own = np.array([17, 8999])
    for found, position in zip(nearest(file, values[own], own, 7, comparator), own.tolist(), strict=True):
        order, scores = expected(values, values[position], position, 7, comparator)
        assert found.positions.tolist() == order
        assert found.scores == pytest.approx(scores, rel=1e-12)


@pytest.mark.parametrize("comparator", ["cos", "dot", "l2"])
def test_equal_embeddings_tie_wherever_they_stand_and_go_by_index(tmp_path, comparator):
    rng = np.random.default_rng(1)
    values = rng.standard_normal((ROWS, DIM), np.float32)
    twins = np.sort(rng.choice(ROWS, 40, replace=False))
    values[twins] = values[twins[0]]
    write_embeddings(tmp_path / "a.parquet", None, values)
    (found,) = nearest(EmbeddingFile(tmp_path / "a.parquet"), values[twins[:1]], None, 30, comparator)
    assert found.positions.tolist() == twins[:30].tolist()
    assert len(set(found.scores.tolist())) == 1


def test_fewer_than_k_and_embeddings_that_are_not_finite(tmp_path):
    values = np.array([[1, 0], [np.nan, 0], [0, 0], [2, 0], [np.inf, 1]], np.float32)
    write_embeddings(tmp_path / "a.parquet", None, values)
    (found,) = nearest(EmbeddingFile(tmp_path / "a.parquet"), values[:1], np.array([0]), 10, "cos")
    assert found.positions.tolist() == [3, 2]
    assert found.scores.tolist() == [1.0, 0.0]


# --- The command line. ---


def search(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> list[list[str]]:
    """The rows of what is printed, but for headers."""
    monkeypatch.setattr(sys, "argv", ["neighbors", *map(str, arguments)])
    assert neighbors.main() == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if line and line[0].isdecimal()]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    users = np.array([[1, 0], [0.9, 0.1], [0, 1], [-1, 0]], np.float32)
    write_embeddings(tmp_path / "user.parquet", pa.array(["ann", "bob", "cid", "dee"]), users)
    write_embeddings(tmp_path / "tweet.parquet", pa.array([10**12, 5]), np.array([[0, 2], [3, 0.1]], np.float32))
    write_embeddings(tmp_path / "other.parquet", None, np.ones((2, 3), np.float32))
    return tmp_path


def test_names_numbers_and_another_table(export, capsys, monkeypatch):
    rows = search(
        capsys, monkeypatch, "--embeddings", export, "--table", "user", "--entity", "ann", "--entity", "dee", "--k", 2
    )
    assert [row[:2] for row in rows] == [["1", "bob"], ["2", "cid"], ["1", "cid"], ["2", "bob"]]
    assert float(rows[0][2]) == pytest.approx(0.9 / np.hypot(0.9, 0.1), rel=1e-5)
    user, tweet = export / "user.parquet", export / "tweet.parquet"
    rows = search(capsys, monkeypatch, "--embeddings", tweet, "--entity", 5, "--comparator", "l2")
    assert rows == [["1", str(10**12), f"{-np.hypot(3, 1.9):.6g}"]]
    rows = search(capsys, monkeypatch, "--embeddings", user, "--entity", "cid", "--of", tweet, "--comparator", "dot")
    assert rows == [["1", str(10**12), "2"], ["2", "5", "0.1"]]
    monkeypatch.setenv("HOME", str(export))
    at_home = search(
        capsys, monkeypatch, "--embeddings", user, "--entity", "cid", "--of", "~/tweet.parquet", "--comparator", "dot"
    )
    assert at_home == rows
    of_export = search(
        capsys, monkeypatch, "--embeddings", export, "--table", "user", "--entity", "cid", "--of", "tweet"
    )
    assert [row[1] for row in of_export] == [str(10**12), "5"]
    # Its own table is no other one.
    rows = search(capsys, monkeypatch, "--embeddings", user, "--entity", "ann", "--of", user)
    assert [row[1] for row in rows] == ["bob", "cid", "dee"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--embeddings {0}/user.parquet --entity Ann", "similar ones: ann"),
        ("--embeddings {0}/user.parquet --entity bobb", "similar ones: bob"),
        ("--embeddings {0}/user.parquet --entity 99", "not among the 4 entities of {0}/user.parquet; such as ann, bob"),
        ("--embeddings {0}/tweet.parquet --entity 6", "they go from 5 to 1000000000000"),
        ("--embeddings {0}/tweet.parquet --entity 99999999999999999999", "they go from 5 to"),
        ("--embeddings {0}/tweet.parquet --entity ann", "has integers as entities"),
        ("--embeddings {0} --entity ann", "has the tables other, tweet, user; choose one with --table"),
        ("--embeddings {0} --table users --entity ann", "--table users: {0} has other, tweet, user"),
        ("--embeddings {0}/nothing --entity ann", "--embeddings {0}/nothing: no file, and no directory with"),
        (
            "--embeddings {0} --table user --entity ann --of tweets",
            "--of tweets: neither a file nor a table of {0}, which has other, tweet, user",
        ),
        ("--embeddings {0}/user.parquet --entity ann --of {0}", "--of {0}: neither a file nor a table of {0}/user.p"),
        ("--embeddings {0}/user.parquet --entity ann --k 0", "'0' is not a whole number >= 1"),
        (
            "--embeddings {0}/user.parquet --entity ann --of {0}/other.parquet",
            "--of {0}/other.parquet: embeddings of 3 numbers, those of {0}/user.parquet have 2",
        ),
    ],
)
def test_mistakes(export, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["neighbors", *arguments.format(export).split()])
    with pytest.raises(UserError) as caught:
        neighbors.main()
    assert message.format(export) in str(caught.value)


def test_a_mistake_ends_the_program_with_2_and_one_message(export):
    command = [sys.executable, "-m", "projects.twhin.neighbors", "--embeddings", str(export / "user.parquet")]
    ended = subprocess.run([*command, "--entity", "eve"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: --entity eve: not among the 4 entities")
    assert "Traceback" not in ended.stderr
