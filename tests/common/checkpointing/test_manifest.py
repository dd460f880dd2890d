"""Writing and parsing manifests: no change goes unnoticed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from common.checkpointing.manifest import (
    ADVICE,
    CheckpointError,
    DamagedCheckpointError,
    FileRecord,
    make_manifest,
    parse_manifest,
)

PATH = Path("run/checkpoints/5")
FILES = {name: FileRecord(3, "ab" * 32) for name in ("tensors.json", "state.json")}
TORCH_FILES = {name: FileRecord(3, "ab" * 32) for name in (".metadata", "__0_0.distcp", "__11_2.distcp", "state.json")}


def text(**changes: Any) -> bytes:
    """Return a valid manifest with `changes` applied."""
    content = make_manifest(5, FILES, {"torch": "2.13.0"}) | changes
    return json.dumps(content, indent=1).encode()


def sealed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> bytes:
    """Return text(**changes) and make its digest valid."""
    monkeypatch.setattr("common.checkpointing.manifest._seal", lambda _: "right")
    return text(**changes)


def test_a_manifest_can_be_parsed() -> None:
    manifest = parse_manifest(PATH, text())
    assert (manifest.format, manifest.files) == (2, FILES)
    assert manifest.provenance == {"torch": "2.13.0"}
    assert json.loads(text()).keys() == {"format", "step", "provenance", "files", "blake2b"}


def test_a_manifest_of_the_earlier_format_can_be_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {name: {"size": file.size, "blake2b": file.digest} for name, file in TORCH_FILES.items()}
    manifest = parse_manifest(PATH, sealed(monkeypatch, format=1, files=listed))
    assert (manifest.format, manifest.files) == (1, TORCH_FILES)
    for wrong in ({"tensors.json": listed["state.json"]}, {"__x.distcp": listed["state.json"]}):
        with pytest.raises(DamagedCheckpointError, match="which is not a file of a checkpoint"):
            parse_manifest(PATH, sealed(monkeypatch, format=1, files=listed | wrong))
    del listed[".metadata"]
    with pytest.raises(DamagedCheckpointError, match=r"lacks \.metadata"):
        parse_manifest(PATH, sealed(monkeypatch, format=1, files=listed))


def test_every_changed_byte_is_detected() -> None:
    content = text()
    messages = []
    for position in range(len(content)):
        for mask in (1, 128):
            changed = bytearray(content)
            changed[position] ^= mask
            try:
                manifest = parse_manifest(PATH, bytes(changed))
            except DamagedCheckpointError as error:
                messages.append(str(error))
            else:
                assert manifest == parse_manifest(PATH, content), "only white space may change"
    assert len(messages) > 1.8 * len(content)
    start = f"{PATH}/manifest.json: damaged checkpoint: "
    assert all(message.startswith(start) and message.endswith(ADVICE) for message in messages)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"\x00",
        b"\xff\xfe",
        b'{"blake2b": null}',
        b'{"blake2b": "' + b"0" * 64 + b'"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"blake2b": ' + b"9" * 5000 + b"}",
        text(step=6),
        text(provenance={"torch": "2.14.0"}),
    ],
)
def test_content_that_is_not_a_manifest_counts_as_damage(content: bytes) -> None:
    with pytest.raises(DamagedCheckpointError, match=rf"^{PATH}/manifest\.json: damaged checkpoint: "):
        parse_manifest(PATH, content)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"files": None}, "list of files is invalid"),
        ({"files": [1]}, "list of files is invalid"),
        ({"files": {"tensors.json": 1}}, "list of files is invalid"),
        ({"files": {"tensors.json": {"size": 1}}}, "list of files is invalid"),
        ({"files": {"tensors.json": {"size": "1", "blake2b": ""}}}, "list of files is invalid"),
        ({"files": {"tensors.json": {"size": 1.0, "blake2b": ""}}}, "list of files is invalid"),
        ({"files": {"tensors.json": {"size": 1, "blake2b": 1}}}, "list of files is invalid"),
        ({"files": {"tensors.json": {"size": 1, "blake2b": "ab"}}}, "lacks state.json"),
        ({"files": {}}, "lacks state.json"),
        ({"files": {"state.json": {"size": 1, "blake2b": "ab"}}}, "lacks tensors.json"),
        ({"provenance": 3}, "list of files is invalid"),
        ({"provenance": [["a", 1]]}, "list of files is invalid"),
        ({"provenance": None}, "list of files is invalid"),
    ],
)
def test_wrong_types_with_a_valid_digest_count_as_damage(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DamagedCheckpointError, match=re.escape(problem)):
        parse_manifest(PATH, sealed(monkeypatch, **changes))


@pytest.mark.parametrize(
    "name", ["../6/state.json", "/etc/passwd", "tensors.json/..", "a\x00b", "", "x\ud800", "__0_0.distcp", ".metadata"]
)
def test_files_outside_the_directory_count_as_damage(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    listed = {each: {"size": 3, "blake2b": "ab"} for each in (*FILES, name)}
    with pytest.raises(DamagedCheckpointError, match="which is not a file of a checkpoint") as caught:
        parse_manifest(PATH, sealed(monkeypatch, files=listed))
    assert str(caught.value).encode()


@pytest.mark.parametrize("version", [0, 3, None, "1", 10**400])
def test_another_format_does_not_count_as_damage_and_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, version: Any
) -> None:
    with pytest.raises(
        CheckpointError, match=r"this program reads the formats 1 and 2\. Use the version of this program that"
    ) as caught:
        parse_manifest(PATH, sealed(monkeypatch, format=version))
    assert not isinstance(caught.value, DamagedCheckpointError)
