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
FILES = {name: FileRecord(3, "ab" * 32) for name in (".metadata", "__0_0.distcp", "__11_2.distcp", "state.json")}


def text(**changes: Any) -> bytes:
    """A manifest in order, but for `changes`."""
    content = make_manifest(5, FILES, {"torch": "2.13.0"}) | changes
    return json.dumps(content, indent=1).encode()


def sealed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> bytes:
    """As text(), and its digest is right."""
    monkeypatch.setattr("common.checkpointing.manifest._seal", lambda _: "right")
    return text(**changes)


def test_what_was_made_is_parsed() -> None:
    found = parse_manifest(PATH, text())
    assert found.files == FILES
    assert found.provenance == {"torch": "2.13.0"}
    assert json.loads(text()).keys() == {"format", "step", "provenance", "files", "blake2b"}


def test_no_byte_changes_unseen() -> None:
    content = text()
    told = []
    for position in range(len(content)):
        for mask in (1, 128):
            changed = bytearray(content)
            changed[position] ^= mask
            try:
                found = parse_manifest(PATH, bytes(changed))
            except DamagedCheckpointError as error:
                told.append(str(error))
            else:
                assert found == parse_manifest(PATH, content), "white space"
    assert len(told) > 1.8 * len(content)
    begin = f"{PATH}/manifest.json: damaged checkpoint: "
    assert all(message.startswith(begin) and message.endswith(ADVICE) for message in told)


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
def test_a_manifest_of_another_kind_is_damage(content: bytes) -> None:
    with pytest.raises(DamagedCheckpointError, match=rf"^{PATH}/manifest\.json: damaged checkpoint: "):
        parse_manifest(PATH, content)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"files": None}, "it doesn't list the files"),
        ({"files": [1]}, "it doesn't list the files"),
        ({"files": {".metadata": 1}}, "it doesn't list the files"),
        ({"files": {".metadata": {"size": 1}}}, "it doesn't list the files"),
        ({"files": {".metadata": {"size": "1", "blake2b": ""}}}, "it doesn't list the files"),
        ({"files": {".metadata": {"size": 1.0, "blake2b": ""}}}, "it doesn't list the files"),
        ({"files": {".metadata": {"size": 1, "blake2b": 1}}}, "it doesn't list the files"),
        ({"files": {".metadata": {"size": 1, "blake2b": "ab"}}}, "it doesn't list state.json"),
        ({"files": {}}, "it doesn't list .metadata"),
        ({"provenance": 3}, "it doesn't list the files"),
        ({"provenance": [["a", 1]]}, "it doesn't list the files"),
        ({"provenance": None}, "it doesn't list the files"),
    ],
)
def test_wrong_types_with_a_digest_that_is_right_are_damage(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(DamagedCheckpointError, match=re.escape(told)):
        parse_manifest(PATH, sealed(monkeypatch, **changes))


@pytest.mark.parametrize("name", ["../6/state.json", "/etc/passwd", "__0_0.distcp/..", "a\x00b", "", "x\ud800"])
def test_files_elsewhere_are_damage(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    listed = {each: {"size": 3, "blake2b": "ab"} for each in (*FILES, name)}
    with pytest.raises(DamagedCheckpointError, match="which is no file of a checkpoint") as raised:
        parse_manifest(PATH, sealed(monkeypatch, files=listed))
    assert str(raised.value).encode()


@pytest.mark.parametrize("version", [0, 2, None, "1", 10**400])
def test_another_format_is_no_damage_and_what_to_do_is_told(monkeypatch: pytest.MonkeyPatch, version: Any) -> None:
    with pytest.raises(CheckpointError, match=r"this program reads 1; use the version of this program that") as raised:
        parse_manifest(PATH, sealed(monkeypatch, format=version))
    assert not isinstance(raised.value, DamagedCheckpointError)
