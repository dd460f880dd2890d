import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from common.errors import UserError
from common.files.embedding_files import EmbeddingFile, write_embeddings
from projects.twhin.neighbors import __main__ as neighbors
from projects.twhin.neighbors.search import nearest
from tests.support.root import ROOT

# A row group of 8 MiB holds 4,096 rows of this dimension, so the file has three, and the last is not full.
DIM, ROWS = 512, 9_000


def expected(values: np.ndarray[Any, Any], query: np.ndarray[Any, Any], own: int | None, k: int, comparator: str):
    """Return the positions and scores of the k nearest, from a full sort in float64."""
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
def test_nearest_equals_a_full_sort(table, comparator):
    file, values = table
    own = np.array([17, 8999])
    for top, position in zip(nearest(file, values[own], own, 7, comparator), own.tolist(), strict=True):
        order, scores = expected(values, values[position], position, 7, comparator)
        assert top.positions.tolist() == order
        assert top.scores == pytest.approx(scores, rel=1e-12)


@pytest.mark.parametrize("comparator", ["cos", "dot", "l2"])
def test_equal_embeddings_tie_at_any_position_and_are_ordered_by_index(tmp_path, comparator):
    rng = np.random.default_rng(1)
    values = rng.standard_normal((ROWS, DIM), np.float32)
    twins = np.sort(rng.choice(ROWS, 40, replace=False))
    values[twins] = values[twins[0]]
    write_embeddings(tmp_path / "a.parquet", None, values)
    (top,) = nearest(EmbeddingFile(tmp_path / "a.parquet"), values[twins[:1]], None, 30, comparator)
    assert top.positions.tolist() == twins[:30].tolist()
    assert len(set(top.scores.tolist())) == 1


def test_nonfinite_embeddings_are_skipped_and_fewer_than_k_are_returned(tmp_path):
    values = np.array([[1, 0], [np.nan, 0], [0, 0], [2, 0], [np.inf, 1]], np.float32)
    write_embeddings(tmp_path / "a.parquet", None, values)
    (top,) = nearest(EmbeddingFile(tmp_path / "a.parquet"), values[:1], np.array([0]), 10, "cos")
    assert top.positions.tolist() == [3, 2]
    assert top.scores.tolist() == [1.0, 0.0]


# --- Command line ---


def search(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> list[list[str]]:
    """Run the program and return the rows of its tables, without headers."""
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


def test_program_finds_neighbors_by_name_by_number_and_in_another_table(export, capsys, monkeypatch):
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
    # If --of names the table of the entity, the entity itself is skipped.
    rows = search(capsys, monkeypatch, "--embeddings", user, "--entity", "ann", "--of", user)
    assert [row[1] for row in rows] == ["bob", "cid", "dee"]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ("--embeddings {0}/user.parquet --entity Ann", ["--entity Ann: ", "Similar entities: ann"]),
        ("--embeddings {0}/user.parquet --entity bobb", ["--entity bobb: ", "Similar entities: bob"]),
        (
            "--embeddings {0}/user.parquet --entity 99",
            ["--entity 99: ", "the 4 entities of {0}/user.parquet", ": ann, bob, cid"],
        ),
        ("--embeddings {0}/tweet.parquet --entity 6", ["--entity 6: ", "from 5 to 1000000000000"]),
        ("--embeddings {0}/tweet.parquet --entity 99999999999999999999", ["the 2 entities", "from 5 to 1000000000000"]),
        (
            "--embeddings {0}/tweet.parquet --entity ann",
            ["--entity ann: ", "{0}/tweet.parquet are integers"],
        ),
        ("--embeddings {0} --entity ann", ["--embeddings {0}: ", "tables other, tweet, user", "--table"]),
        ("--embeddings {0} --table users --entity ann", ["--table users: not in {0}", "other, tweet, user"]),
        (
            "--embeddings {0}/nothing --entity ann",
            ["--embeddings {0}/nothing: neither a file", "*.parquet"],
        ),
        (
            "--embeddings {0} --table user --entity ann --of tweets",
            ["--of tweets: neither a file nor a table of {0}", "other, tweet, user"],
        ),
        (
            "--embeddings {0}/user.parquet --entity ann --of {0}",
            ["--of {0}: neither a file nor a table of {0}/user.parquet", "tables user"],
        ),
        ("--embeddings {0}/user.parquet --entity ann --k 0", ["--k", "'0'"]),
        (
            "--embeddings {0}/user.parquet --entity ann --of {0}/other.parquet",
            ["--of {0}/other.parquet: ", "dimension 3", "{0}/user.parquet have dimension 2"],
        ),
    ],
)
def test_invalid_options_are_errors(export, monkeypatch, arguments, facts):
    monkeypatch.setattr(sys, "argv", ["neighbors", *arguments.format(export).split()])
    with pytest.raises(UserError) as caught:
        neighbors.main()
    assert [fact for fact in facts if fact.format(export) not in str(caught.value)] == []


def test_unsigned_entities_beyond_int64(tmp_path, capsys, monkeypatch):
    entities = pa.array(np.array([2**64 - 1, 2**63, 5], np.uint64))
    write_embeddings(path := tmp_path / "tweet.parquet", entities, np.array([[0, 2], [3, 0.1], [1, 1]], np.float32))
    rows = search(capsys, monkeypatch, "--embeddings", path, "--entity", 2**63)
    assert [row[1] for row in rows] == ["5", str(2**64 - 1)]
    for missing in (-1, 2**64):
        with pytest.raises(UserError, match=f"--entity {missing}: not among the 3 entities"):
            search(capsys, monkeypatch, "--embeddings", path, f"--entity={missing}")


def test_nonfinite_query_is_an_error(export, monkeypatch):
    path = export / "nan.parquet"
    write_embeddings(path, pa.array(["ann", "bob"]), np.array([[np.nan, 0], [1, 0]], np.float32))
    monkeypatch.setattr(sys, "argv", ["neighbors", "--embeddings", str(path), "--entity", "ann"])
    with pytest.raises(UserError, match=f"^--entity ann: .*{path} is not finite"):
        neighbors.main()


def test_error_ends_the_program_with_status_2_and_one_message(export):
    command = [sys.executable, "-m", "projects.twhin.neighbors", "--embeddings", str(export / "user.parquet")]
    ended = subprocess.run(
        [*command, "--entity", "eve"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: --entity eve: not among the 4 entities")
    assert "Traceback" not in ended.stderr
