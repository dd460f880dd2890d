import gzip
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from common.reader.files import DataError
from projects.twhin.tools.text_blocks import Block, line_number, parse, read_blocks

COLUMNS = {"name": pa.string(), "number": pa.int64()}


def rows(path: Path, block_bytes: int = 16) -> list[tuple[str, int]]:
    parsed = []
    for block in read_blocks(path, block_bytes):
        table = parse(block, path, ["name", "rest", "number"], COLUMNS, "\t")
        parsed += [(row["name"], row["number"]) for row in table.to_pylist()]
    return parsed


def message_of(path: Path, block_bytes: int = 16) -> str:
    with pytest.raises(DataError) as caught:
        rows(path, block_bytes)
    return str(caught.value)


def text(count: int) -> str:
    return "".join(f"n{number}\t-\t{number}\n" for number in range(count))


@pytest.mark.parametrize("block_bytes", [9, 10, 16, 50, 10_000])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "n30\t\t30"])
def test_blocks_contain_every_line(tmp_path, block_bytes, end):
    (tmp_path / "x").write_text(text(30) + end)
    count = 31 if "n30" in end else 30
    assert rows(tmp_path / "x", block_bytes) == [(f"n{number}", number) for number in range(count)]


def test_compressed_files_are_recognized_by_their_content(tmp_path):
    for name in ("plain.gz", "gzipped", "zipped"):
        path = tmp_path / name
        if name == "plain.gz":
            path.write_text(text(40))
        elif name == "gzipped":
            path.write_bytes(gzip.compress(text(20).encode()) + gzip.compress(text(40)[len(text(20)) :].encode()))
        else:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("folder/", "")
                archive.writestr("folder/a.tsv", text(40))
                archive.writestr("__MACOSX/folder/._a.tsv", "?")
        assert rows(path) == [(f"n{number}", number) for number in range(40)]


def test_line_endings_are_stripped_and_quotes_and_nulls_are_plain_text(tmp_path):
    (tmp_path / "x").write_bytes('"a\t"\t1\r\nNULL\t\t-2\r\n\r\n\xe4 b\t-\t3\r\n'.encode())
    assert rows(tmp_path / "x", 100) == [('"a', 1), ("NULL", -2), ("ä b", 3)]


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        (b"a\t1", ["2 column(s)", "3 separated by tabs", ": 'a\\t1'"]),
        (b"a\tb\t1\t", ["4 column(s)", "3 separated by tabs", ": 'a\\tb\\t1\\t'"]),
        (b"b" * 90, ["1 column(s)", "3 separated by tabs", ": '" + "b" * 80 + "...'"]),
        (b"\tb\t1", ["the name is empty: '\\tb\\t1'"]),
        (b"a\tb\t", ["the number is empty: 'a\\tb\\t'"]),
        (b"a\tb\t1.5", ["the number is '1.5'", "below 2^63", ": 'a\\tb\\t1.5'"]),
        (b"a\tb\t9223372036854775808", ["the number is '9223372036854775808'", "below 2^63"]),
        (b"a\xff\tb\t1", ["not UTF-8: byte 1 of the line is 0xff", "to UTF-8"]),
        (b"x" * 500, ["longer than 100 bytes", "text file"]),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 25])
def test_message_has_the_number_of_the_invalid_line(tmp_path, line, facts, before):
    """Empty lines count."""
    path = tmp_path / "x"
    path.write_bytes(b"\n" + text(before).encode() + line + b"\n" + text(20).encode())
    message = message_of(path, 100)
    assert message.startswith(f"{path}:{before + 2}: ")
    assert [fact for fact in facts if fact not in message] == []


def test_unreadable_files_are_errors(tmp_path):
    whole = gzip.compress(text(5000).encode())
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged").write_bytes(whole[:20] + b"\0\xff" * 500)
    with zipfile.ZipFile(tmp_path / "two", "w") as archive:
        archive.writestr("a", "1")
        archive.writestr("b", "2")
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04" + b"?" * 50)
    for name, reason in (
        ("cut", ""),
        ("damaged", ""),
        ("no.zip", ""),
        (".", "Is a directory"),
        ("none", "No such file or directory"),
    ):
        message = message_of(tmp_path / name, 1000)
        assert message.startswith(f"{tmp_path / name}: cannot read this file: {reason}")
        assert message.endswith("plain, .gz or .zip")
    message = message_of(tmp_path / "two")
    assert message.startswith(f"{tmp_path / 'two'}: ")
    for fact in ("2 files", "expected 1", ": a, b"):
        assert fact in message


def test_line_number_counts_empty_lines():
    block = Block(7, b"a\n\n\r\nb\nc")
    assert [line_number(block, row) for row in range(3)] == [7, 10, 11]
