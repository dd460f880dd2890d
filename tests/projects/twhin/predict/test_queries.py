"""Queries are given by name, on the command line or in files."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.predict.__main__ import main
from tests.projects.twhin.predict.test_top_k import USERS, predicted, run_program
from tests.support.root import ROOT
from tests.support.saved_twhin import with_vocabulary, write_run
from tests.support.toy_twhin import model_config


@pytest.fixture(scope="module")
def save_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose users have names, and whose tweets are named by their rows."""
    folder: Path = tmp_path_factory.mktemp("run")
    write_vocabulary(vocabulary := folder / "vocabulary" / "user.parquet", pa.array(USERS))
    write_run(folder / "run", with_vocabulary(model_config(), vocabulary))
    return folder / "run"


QUERIES = [("u1", "fav", None), ("u8", "follow", None), (None, "fav", "6"), (None, "by", "u3"), ("2", "by", None)]


def answers(monkeypatch: pytest.MonkeyPatch, save_dir: Path, out: Path, *options: object) -> list[tuple[str, str, str]]:
    run_program(monkeypatch, "--checkpoint", save_dir, "--out", out, *options)
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    return [(row["head"], row["relation"], row["tail"]) for row in rows]


def test_text_parquet_and_options_ask_the_same(save_dir, tmp_path, monkeypatch):
    text = "".join("\t".join(name or "?" for name in query) + "\n" for query in QUERIES)
    (tmp_path / "queries.tsv").write_text(f"\n{text}\n".replace("u1", " u1 "))
    columns = dict(zip(("head", "relation", "tail"), map(list, zip(*QUERIES, strict=True)), strict=True))
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "strings.parquet")
    categories = [table.column(name).dictionary_encode() for name in columns]
    pq.write_table(pa.table(categories, names=list(columns)), tmp_path / "categories.parquet")
    from_text = answers(monkeypatch, save_dir, tmp_path / "1", "--queries", tmp_path / "queries.tsv")
    assert len(from_text) > len(QUERIES)
    for number, name in enumerate(("strings", "categories"), start=2):
        found = answers(monkeypatch, save_dir, tmp_path / str(number), "--queries", tmp_path / f"{name}.parquet")
        assert found == from_text
    found = []
    for number, (head, relation, tail) in enumerate(QUERIES, start=4):
        option = ["--head", head] if tail is None else ["--tail", tail]
        found += answers(monkeypatch, save_dir, tmp_path / str(number), *option, "--relation", relation)
    assert found == from_text


def test_a_column_without_names_can_be_missing_and_integers_are_names(save_dir, tmp_path, monkeypatch):
    pq.write_table(pa.table({"relation": ["fav", "fav"], "tail": [3, 5]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"relation": ["fav"], "head": ["u2"]}), tmp_path / "b.parquet")
    found = answers(
        monkeypatch, save_dir, tmp_path / "out", "--queries", tmp_path / "a.parquet", tmp_path / "b.parquet"
    )
    (tmp_path / "c.tsv").write_text("?\tfav\t3\n?\tfav\t5\nu2\tfav\t?\n")
    assert found == answers(monkeypatch, save_dir, tmp_path / "out-2", "--queries", tmp_path / "c.tsv")
    assert [query[0]["query"] for query in predicted(tmp_path / "out" / "predictions.parquet", 3)] == [0, 1, 2]


def test_heads_tails_and_relations_are_combined_and_printed(save_dir, monkeypatch, capsys):
    options = ["--head", "u1", "--head", "u2", "--relation", "fav", "--relation", "reply", "--tail", "4", "--k", "2"]
    run_program(monkeypatch, "--checkpoint", save_dir, *options)
    lines = capsys.readouterr().out.splitlines()
    titles = [line.partition(":")[0] for line in lines if line.startswith("(")]
    assert titles == [
        f"({q})" for q in ("u1, fav, ?", "u1, reply, ?", "u2, fav, ?", "u2, reply, ?", "?, fav, 4", "?, reply, 4")
    ]
    assert lines[0].endswith("best of the 7 entities of the table tweet")
    assert lines[-6].endswith("best of the 9 entities of the table user")
    ranks = [line.split()[0] for line in lines if line.split()[:1] in (["1"], ["2"])]
    assert ranks == ["1", "2"] * 6


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ("--head u1 --relation favs", ["--head u1 --relation favs: favs is not among the 8 relations", "fav"]),
        (
            "--head U1 --relation fav",
            ["--head U1 --relation fav: U1 is not among the 9 entities of the table user", "Similar entities: u1"],
        ),
        ("--head 5 --relation fav", ["5 is not among the 9 entities", "user.parquet)", "Similar entities: u5"]),
        (
            "--relation fav --tail 7",
            ["7 is not among the 7 entities of the table tweet, which has no vocabulary", "0 to 6"],
        ),
        ("--head u1", ["need --relation"]),
        ("--relation fav", ["give one of --head or --tail with --relation, --queries, and --ranks; found none"]),
        ("--queries {0} --head u1 --relation fav", ["found --head or --tail and --queries"]),
        ("--head u1 --relation fav --k 0", ["--k", "'0'"]),
        ("--ranks {0}", ["--ranks needs --out"]),
        ("--ranks {0} --out {0}/out --k 3", ["--k has no effect"]),
        ("--queries {0}/none", ["{0}/none: no file matches"]),
        ("--queries {0}/both.tsv", ["{0}/both.tsv:2: both head and tail are given", "?"]),
        ("--queries {0}/neither.parquet", ["{0}/neither.parquet: row 1 (counted from 0): neither head nor tail"]),
        ("--queries {0}/null.parquet", ["{0}/null.parquet: row 1 (counted from 0): the relation is missing"]),
        ("--queries {0}/floats.parquet", ["{0}/floats.parquet: column 'head': found double"]),
        ("--queries {0}/columns.parquet", ["{0}/columns.parquet: found the columns user, relation"]),
        ("--queries {0}/empty.tsv", ["--queries {0}/empty.tsv: no queries found"]),
        ("--queries {0}/columns.tsv", ["{0}/columns.tsv:1: found 2 column(s), expected 3"]),
        (
            "--queries {0}/unknown.tsv",
            ["{0}/unknown.tsv:3: eve is not among the 9 entities", "1 more queries have unknown entities"],
        ),
        ("--head u1 --relation fav --known {0}/none", ["{0}/none: no file matches"]),
        ("--head u1 --relation fav --out {0}", ["--out {0} already exists and is not empty"]),
    ],
)
def test_invalid_options_and_files_are_errors(save_dir, tmp_path, monkeypatch, options, facts):
    (tmp_path / "both.tsv").write_text("u1\tfav\t?\nu1\tfav\t3\n")
    (tmp_path / "unknown.tsv").write_text("u1\tfav\t?\n\neve\tfav\t?\nadam\tfav\t?\n")
    (tmp_path / "columns.tsv").write_text("u1\tfav\n")
    (tmp_path / "empty.tsv").touch()
    tables = {
        "neither": {"head": ["u1", None], "relation": ["fav", "fav"], "tail": [None, None]},
        "null": {"head": ["u1", "u2"], "relation": ["fav", None]},
        "floats": {"head": [1.0, 2.0], "relation": ["fav", "fav"]},
        "columns": {"user": ["u1"], "relation": ["fav"]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    arguments = ["predict", "--checkpoint", str(save_dir), *options.format(tmp_path).split()]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(UserError) as caught:
        main()
    assert [fact for fact in facts if fact.format(tmp_path) not in str(caught.value)] == []
    assert not (tmp_path / "out").exists()


def test_error_ends_the_program_with_status_2_and_one_message(save_dir):
    command = [sys.executable, "-m", "projects.twhin.predict", "--checkpoint", str(save_dir)]
    ended = subprocess.run(
        [*command, "--head", "eve", "--relation", "fav"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[-1].startswith("error: --head eve --relation fav: eve is not among the 9 entities")
    assert "Traceback" not in ended.stderr
