"""All programs expand ~ in the paths that a user gives."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.checkpointing.__main__ import main as checkpointing
from common.errors import UserError
from common.reader.__main__ import main as reader
from projects.home.recap.main import main as recap
from projects.home.recap.tools.click_log import main as click_log
from projects.home.recap.tools.convert import main as convert
from projects.home.recap.tools.generate import main as generate_recap
from projects.home.recap.tools.join_embeddings.__main__ import main as join_embeddings
from projects.home.recap.tools.movielens import main as movielens
from projects.twhin.export.__main__ import main as export
from projects.twhin.main import main as twhin
from projects.twhin.neighbors.__main__ import main as neighbors
from projects.twhin.neighbors.build_index import main as build_index
from projects.twhin.tools.generate import main as generate_graph
from projects.twhin.tools.prepare import main as prepare
from tests.support.root import ROOT

# Each command ends with an error that names a path below the home directory: ~/file/x cannot be created or read,
# because ~/file is not a directory, and the only Parquet file in ~/hidden is hidden.
COMMANDS: dict[str, tuple[Callable[[], int], list[str]]] = {
    "recap --config": (recap, ["--config", "~/file/x"]),
    "twhin --config_path": (twhin, ["--config_path=~/file/x"]),
    "generate": (generate_recap, ["--out=~/file/x", "--num_train_examples=1", "--num_validation_examples=1"]),
    "click_log": (click_log, ["--out=~/file/x.csv", "--num_examples=1"]),
    "generate graph": (generate_graph, ["--out=~/file/x", "--users=300", "--tweets=200", "--edges=500"]),
    "prepare --out": (prepare, ["triples", "--train", "~/triples", "--out=~/file/x"]),
    "prepare --train": (prepare, ["triples", "--train", "~/file/x", "--out=~/out"]),
    "prepare --input": (prepare, ["follow-graph", "--input", "~/hidden", "--out=~/out"]),
    "movielens --input": (movielens, ["--input=~/file/x", "--out=~/out"]),
    "convert --config": (convert, ["--config", "~/file/x", "--out=~/out"]),
    "convert --schema": (convert, ["--schema", "~/file/x", "--inputs=~", "--out=~/out"]),
    "join --data": (join_embeddings, ["--data=~/file/x", "--out=~/out", "--user_embedding=id=~/file/x"]),
    "export --checkpoint": (export, ["--checkpoint=~/file/x", "--out=~/out"]),
    "neighbors --embeddings": (neighbors, ["--embeddings=~/file", "--entity=a"]),
    "build_index --out": (build_index, ["--embeddings=~/file", "--out=~/file/x"]),
    "inspect": (reader, ["inspect", "~/hidden"]),
    "checkpointing": (checkpointing, ["list", "~/file/x"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_tilde_is_expanded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, arguments = COMMANDS[name]
    (tmp_path / "home").mkdir()
    (tmp_path / "home/file").write_text("not a directory\n")
    (tmp_path / "home/triples").write_text("a\tr\tb\n")
    (tmp_path / "home/hidden").mkdir()
    (tmp_path / "home/hidden/.a.parquet").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(UserError) as caught:
        program()
    assert list((tmp_path / "here").iterdir()) == []
    assert f"{tmp_path}/home/" in str(caught.value)


def test_a_tilde_in_a_configuration_is_expanded(recap_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training data are found, and the schema of the validation data is looked for, below the home directory."""
    monkeypatch.setenv("HOME", str(recap_data))
    paths = {
        "train_data.inputs": "~/train",
        "train_data.seg_dense_schema.schema_path": "~/schema.json",
        "validation_data.validation.seg_dense_schema.schema_path": "~/missing.json",
    }
    config = str(ROOT / "projects/home/recap/configs/local.yaml")
    words = [word for key, path in paths.items() for word in ("--set", f"{key}={path}")]
    monkeypatch.setattr(sys, "argv", ["program", "--config", config, *words])
    with pytest.raises(UserError, match=rf"cannot read {recap_data}/missing\.json"):
        recap()
