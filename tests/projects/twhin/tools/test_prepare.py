"""Runs the command in this process, and once in a process of its own."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from core.config.config_load import load_config_from_yaml
from projects.twhin.config import TwhinConfig
from projects.twhin.data.edges import EdgeDataset
from projects.twhin.data.vocabulary import read_vocabulary
from projects.twhin.model.relations import build_relations
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
def test_configuration_fits_the_edges(files, monkeypatch, capsys, kind):
    out = files / "new" / "graph"
    inputs: tuple[object, ...] = ("--input", files / "faves.csv", "--validation_from", "8")
    if kind == "triples":
        inputs = ("--train", files / "triples.tsv", "--validation", files / "triples.tsv")
    assert call(monkeypatch, kind, "--out", out, *inputs) == 0
    config = load_config_from_yaml(TwhinConfig, out / "config.yaml")
    output = capsys.readouterr().out
    assert f"--config {out / 'config.yaml'}" in output
    for table in config.model.embeddings.tables:
        assert f"{table.name} (num_embeddings: {table.num_embeddings})" in output
    names = [relation.name for relation in config.model.relation_list]
    assert (out / "relations.txt").read_text().splitlines() == names
    for path, data in config.data_sets().items():
        dataset = EdgeDataset.open(data, build_relations(config.model), path)
        edges = sum(int(placed.batch.weights.sum()) for placed in dataset.reader(0, 1).evaluate())
        assert edges == {"triples": 200, "fave-graph": 320 if path == "train_data" else 80}[kind]


@pytest.mark.parametrize("others", [0, 30])
def test_the_configuration_names_the_relations_as_the_file_does(files, monkeypatch, others):
    """More than 20 relations are listed in a file of their own."""
    names = [
        "1e5", "010", "yes", "null", "~", "$HOME", "${x}$$", "a\x85b", "a\u2028b", "'", '"', "a: b", "a #b", "-", "{a}",
        "[", "<<", "🙂", "r" * 5000, *(f"r{number}" for number in range(others)),
    ]  # fmt: skip
    text = "".join(f"{name}\t{name}\t{name}\n" for name in names)
    (files / "odd.tsv").write_bytes(text.encode())
    out = files / "$it's 1e5: \x85"
    assert call(monkeypatch, "triples", "--train", files / "odd.tsv", "--out", out, "--entity_type", "010") == 0
    config = load_config_from_yaml(TwhinConfig, out / "config.yaml")
    assert [relation.name for relation in config.model.relation_list] == names
    assert [table.name for table in config.model.embeddings.tables] == ["010"]
    assert config.train_data.data_root == str(out / "train")
    vocabulary = config.model.embeddings.tables[0].vocab
    assert vocabulary is not None
    assert read_vocabulary(Path(vocabulary)).to_pylist() == names


def test_the_printed_command_can_be_pasted_into_a_shell(files, monkeypatch, capsys):
    out = files / "a b; $c"
    assert call(monkeypatch, "triples", "--train", files / "triples.tsv", "--out", out) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("train with: "))
    assert command == ["python", "-m", "projects.twhin.main", "--config", str(out / "config.yaml")]


def test_the_current_directory_gives_the_run_its_name(files, monkeypatch):
    (files / "mine").mkdir()
    monkeypatch.chdir(files / "mine")
    assert call(monkeypatch, "triples", "--train", files / "triples.tsv", "--out", ".") == 0
    assert load_config_from_yaml(TwhinConfig, Path("config.yaml")).training.save_dir == "runs/mine"


@pytest.mark.parametrize("name", ["", "a.b", "a\nb", "x" * 201, "caf\udce9"])
def test_an_impossible_table_name_is_an_error_before_the_work(files, monkeypatch, name):
    with pytest.raises(UserError, match="--entity_type: "):
        call(monkeypatch, "triples", "--train", files / "none", "--out", files / "graph", "--entity_type", name)


def test_errors_leave_nothing_behind(files, monkeypatch):
    before = sorted(files.rglob("*"))
    for arguments, facts in (
        (("triples", "--train", files / "bad.tsv"), [f"{files / 'bad.tsv'}:201: ", "2 column(s)"]),
        (("triples", "--train", files / "none"), [f"{files / 'none'}: ", "No such file"]),
        (("fave-graph", "--input", files / "none"), [f"{files / 'none'}: "]),
        (("fave-graph", "--input", files / "faves.csv", "--test_from", "10"), ["edges left for test: ", "0 to 9"]),
        (
            ("fave-graph", "--input", files / "faves.csv", "--validation_from", "3", "--test_from", "3"),
            ["--validation_from 3 is not before --test_from 3"],
        ),
        (
            ("triples", "--train", files / "triples.tsv", "--entity_type", "a/b"),
            ["--entity_type", "'a/b'", "'.', '/' or"],
        ),
        (("triples",), ["required: --train"]),
    ):
        with pytest.raises(UserError) as caught:
            call(monkeypatch, *arguments, "--out", files / "graph")
        assert [fact for fact in facts if fact not in str(caught.value)] == []
        assert sorted(files.rglob("*")) == before
    with pytest.raises(UserError, match=f"--out {re.escape(str(files))} .*exists"):
        call(monkeypatch, "triples", "--train", files / "triples.tsv", "--out", files)
    assert sorted(files.rglob("*")) == before


def test_program_reports_an_error_in_one_line_and_exits_with_2(files):
    command = [sys.executable, "-m", "projects.twhin.tools.prepare", "triples", "--out", str(files / "graph")]
    failed = subprocess.run(
        [*command, "--train", str(files / "bad.tsv")], capture_output=True, text=True, check=False, timeout=120
    )
    assert (failed.returncode, failed.stdout) == (2, "")
    (line,) = failed.stderr.splitlines()
    assert line.startswith(f"error: {files / 'bad.tsv'}:201: ")
    for fact in ("2 column(s)", "3 separated by tabs", r"'a\tb'"):
        assert fact in line
