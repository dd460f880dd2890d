import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from common.reader.files import DataError
from projects.twhin.tools.text_blocks import Block, line_number, parse, read_blocks
from projects.twhin.tools.text_files import FILE_FORMATS

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


def test_lines_of_compressed_files_are_parsed(tmp_path):
    (tmp_path / "x").write_bytes(gzip.compress(text(40).encode()))
    assert rows(tmp_path / "x") == [(f"n{number}", number) for number in range(40)]


def test_a_byte_order_mark_at_the_start_is_skipped(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf" + text(3).encode())
    assert rows(tmp_path / "x") == [("n0", 0), ("n1", 1), ("n2", 2)]


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
        (b"x" * 101, ["longer than 100 bytes"]),
        (b"x" * 98 + b"\t\t1", ["longer than 100 bytes"]),
        (b"a\tb\r\t1", ["carriage return"]),
        (b"a\tb\t1\rc\td\t2", ["carriage return"]),
        (b"a\tb\t1\r\r", ["carriage return"]),
        (b"a\0\tb\t1", ["NUL", "UTF-16"]),
        (b"\xef\xbb\xbfa\tb\t1", ["byte order mark"]),
        (b"a\xef\xbb\xbf\tb\t1", ["byte order mark"]),
        (b"  \tb\t1", ["the name is empty: '  \\tb\\t1'"]),
        (b"   ", ["1 column(s)"]),
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
        assert message.endswith(FILE_FORMATS)


def test_lines_up_to_the_limit_are_read(tmp_path):
    """The limit counts the bytes without the line break, wherever the blocks of the file end."""
    line = b"x" * 96 + b"\t\t1"
    for before in range(0, 120, 7):
        (tmp_path / "x").write_bytes(b"\n" * before + line + b"\n" + line)
        assert len(rows(tmp_path / "x", len(line))) == 2
        with pytest.raises(DataError, match=f":{before + 1}: .*longer than {len(line) - 1} bytes"):
            rows(tmp_path / "x", len(line) - 1)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf\tb\t1\n", b"\xef\xbb\xbf  \tb\t1\n"])
def test_an_empty_name_after_a_byte_order_mark_is_an_error(tmp_path, mark):
    (tmp_path / "x").write_bytes(mark)
    assert message_of(tmp_path / "x", 100).startswith(f"{tmp_path / 'x'}:1: the name is empty: ")


def test_utf_16_without_a_byte_order_mark_is_an_error(tmp_path):
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / "x").write_bytes(text(5).replace("\n", "\r\n").encode(encoding))
        assert message_of(tmp_path / "x", 100).startswith(f"{tmp_path / 'x'}:1: found a NUL byte.")


def test_line_number_counts_empty_lines():
    block = Block(7, b"a\n\n\r\nb\nc")
    assert [line_number(block, row) for row in range(3)] == [7, 10, 11]


def test_the_message_is_about_the_invalid_line_and_not_about_leading_zeros(tmp_path):
    (tmp_path / "x").write_bytes(b"a\tb\t00000000000000000000000001\na\tb\tx\n")
    with pytest.raises(DataError, match=r"x:2: the number is 'x'"):
        rows(tmp_path / "x", 100)
