"""Checks that a run keeps copies of the files that its configuration names, and that they are found and verified."""

from pathlib import Path

import pytest

from common.errors import UserError
from core.run.inputs import delete_inputs, find_inputs, keep_inputs, replace_values, values_at


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text("of training")
    return path


@pytest.fixture
def save_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def test_a_copy_is_found_after_the_original_has_changed(schema: Path, save_dir: Path) -> None:
    names = keep_inputs(save_dir, [str(schema)])
    schema.write_text("changed")
    found = find_inputs(save_dir / "checkpoints/4", names)
    assert Path(found[str(schema)]).read_text() == "of training"


def test_a_resume_with_a_changed_file_adds_a_copy(schema: Path, save_dir: Path) -> None:
    before = keep_inputs(save_dir, [str(schema)])
    assert keep_inputs(save_dir, [str(schema)]) == before
    schema.write_text("changed")
    after = keep_inputs(save_dir, [str(schema)])
    texts = [Path(find_inputs(save_dir / "checkpoints/4", names)[str(schema)]).read_text() for names in (before, after)]
    assert texts == ["of training", "changed"]


def test_the_copies_may_be_next_to_a_checkpoint(schema: Path, save_dir: Path, tmp_path: Path) -> None:
    names = keep_inputs(save_dir, [str(schema)])
    schema.unlink()
    (tmp_path / "elsewhere/models").mkdir(parents=True)
    (save_dir / "inputs").rename(tmp_path / "elsewhere/models/inputs")
    found = find_inputs(tmp_path / "elsewhere/models/4", names)
    assert Path(found[str(schema)]).read_text() == "of training"


def test_an_original_with_the_same_content_replaces_a_damaged_copy(schema: Path, save_dir: Path) -> None:
    names = keep_inputs(save_dir, [str(schema)])
    (save_dir / "inputs" / names[str(schema)]).write_text("damaged")
    assert find_inputs(save_dir / "checkpoints/4", names) == {str(schema): str(schema)}
    schema.write_text("changed")
    with pytest.raises(
        UserError, match=f"needs the file {schema} as it was in training.* to {save_dir}/checkpoints/inputs$"
    ):
        find_inputs(save_dir / "checkpoints/4", names)


def test_a_long_name_is_shortened(save_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / ("é" * 120)
    path.write_text("x")
    names = keep_inputs(save_dir, [str(path)])
    assert Path(find_inputs(save_dir / "checkpoints/4", names)[str(path)]).parent == save_dir / "inputs"


def test_starting_over_deletes_the_copies_only(schema: Path, save_dir: Path) -> None:
    keep_inputs(save_dir, [str(schema)])
    (save_dir / "inputs/notes.txt").write_text("of the user")
    delete_inputs(save_dir)
    assert [path.name for path in (save_dir / "inputs").iterdir()] == ["notes.txt"]
    (save_dir / "inputs/notes.txt").unlink()
    delete_inputs(save_dir)
    assert not (save_dir / "inputs").exists()
    delete_inputs(save_dir)


def test_values_at_key_paths_are_replaced() -> None:
    config = {"data": {"schema": "a", "other": "a"}, "features": {"x.y": {"vocabulary": "b"}}}
    key_paths = [("data", "schema"), ("features", "x.y", "vocabulary")]
    assert values_at(config, key_paths) == ["a", "b"]
    replaced = replace_values(config, key_paths, {"a": "c", "b": "d"})
    assert replaced == {"data": {"schema": "c", "other": "a"}, "features": {"x.y": {"vocabulary": "d"}}}
    assert config["data"] == {"schema": "a", "other": "a"}
