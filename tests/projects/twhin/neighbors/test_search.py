import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.files.embedding_files import write_embeddings
from projects.twhin.neighbors import __main__ as neighbors
from projects.twhin.neighbors import build_index
from tests.support.neighbors import expected_neighbors
from tests.support.root import ROOT


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
        ("--embeddings {0}/user.parquet", ["--entity or --entities"]),
        ("--embeddings {0}/user.parquet --entity ann --recall 0.95", ["--recall", "--index"]),
        ("--embeddings {0}/user.parquet --entities {0}/no", ["--entities {0}/no: ", "No such file"]),
        ("--embeddings {0}/user.parquet --entity ann --index {0}/no", ["--index {0}/no: ", "build_index"]),
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


@pytest.mark.parametrize("kind", ["text", "parquet"])
def test_a_batch_is_written_in_the_order_of_its_file(export, capsys, monkeypatch, kind):
    names = ["dee", "ann", "dee"]
    path = export / "batch"
    path.write_text("".join(f"{name}\n" for name in names))
    if kind == "parquet":
        pq.write_table(pa.table({"entity": names, "more": [1, 2, 3]}), path)
    user, out = export / "user.parquet", export / "out"
    monkeypatch.setattr(
        sys, "argv", ["", *f"--embeddings {user} --entities {path} --entity cid --k 2 --out {out}".split()]
    )
    assert neighbors.main() == 0
    assert f"{out}/neighbors.parquet" in capsys.readouterr().out
    written = pq.read_table(out / "neighbors.parquet")
    assert written.column("entity").to_pylist() == ["cid", "cid", "dee", "dee", "ann", "ann", "dee", "dee"]
    assert written.column("rank").to_pylist() == [1, 2] * 4
    assert written.column("neighbor").to_pylist() == ["bob", "ann", "cid", "bob", "bob", "cid", "cid", "bob"]
    assert written.column("score").to_pylist()[4] == pytest.approx(0.9 / np.hypot(0.9, 0.1), rel=1e-7)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("", ["no entities found"]),
        ("ann\nbobb\ncydney\n", ["2 of 3 are not among the 4 entities", "bobb, cydney", "Similar entities: bob"]),
        ("ann\nb\tob\n", ["batch:2"]),
        (pa.table({"name": ["ann"]}), ["no column 'entity'"]),
        (pa.table({"entity": ["ann", None]}), ["row 1", "null"]),
        (pa.table({"entity": [1.5]}), ["double", "expected strings or integers"]),
    ],
)
def test_invalid_batches_are_errors_and_write_nothing(export, monkeypatch, content, facts):
    path = export / "batch"
    if isinstance(content, str):
        path.write_text(content)
    else:
        pq.write_table(content, path)
    arguments = f"--embeddings {export}/user.parquet --entities {path} --out {export}/out"
    monkeypatch.setattr(sys, "argv", ["", *arguments.split()])
    with pytest.raises(UserError) as caught:
        neighbors.main()
    assert [fact for fact in facts if fact not in str(caught.value)] == []
    assert not (export / "out").exists()


def test_program_builds_an_index_and_searches_with_it(tmp_path, capsys, monkeypatch):
    values = np.random.default_rng(0).standard_normal((1500, 8), np.float32)
    write_embeddings(path := tmp_path / "user.parquet", None, values)
    monkeypatch.setattr(sys, "argv", ["", *f"--embeddings {path} --comparator l2 --out {tmp_path}/index".split()])
    assert build_index.main() == 0
    command = capsys.readouterr().out.rpartition("python -m projects.twhin.neighbors ")[2]
    assert command == f"--embeddings {path} --comparator l2 --index {tmp_path}/index --entity NAME\n"
    assert len(search(capsys, monkeypatch, *command.replace("NAME", "7").split())) == 10
    options = ["--embeddings", path, "--entity", 7, "--index", tmp_path / "index", "--k", 5]
    rows = search(capsys, monkeypatch, *options, "--comparator", "l2")
    order, scores = expected_neighbors(values, values[7], 7, 5, "l2")
    assert rows == [
        [str(rank), str(row), f"{score:.6g}"] for rank, (row, score) in enumerate(zip(order, scores, strict=True), 1)
    ]
    monkeypatch.setattr(sys, "argv", ["", *map(str, options), "--comparator", "dot"])
    with pytest.raises(UserError, match="was built for --comparator l2"):
        neighbors.main()
