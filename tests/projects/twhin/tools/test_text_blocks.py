import gzip
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from common.reader.files import DataError
from projects.twhin.tools.text_blocks import Block, line_of, parse, read_blocks

COLUMNS = {"name": pa.string(), "number": pa.int64()}


def rows(path: Path, block_bytes: int = 16) -> list[tuple[str, int]]:
    found = []
    for block in read_blocks(path, block_bytes):
        table = parse(block, path, ["name", "rest", "number"], COLUMNS, "\t")
        found += [(row["name"], row["number"]) for row in table.to_pylist()]
    return found


def told(path: Path, block_bytes: int = 16) -> str:
    with pytest.raises(DataError) as caught:
        rows(path, block_bytes)
    return str(caught.value)


def text(count: int) -> str:
    return "".join(f"n{number}\t-\t{number}\n" for number in range(count))


@pytest.mark.parametrize("block_bytes", [9, 10, 16, 50, 10_000])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "n30\t\t30"])
def test_blocks_lose_no_line(tmp_path, block_bytes, end):
    (tmp_path / "x").write_text(text(30) + end)
    count = 31 if "n30" in end else 30
    assert rows(tmp_path / "x", block_bytes) == [(f"n{number}", number) for number in range(count)]


def test_compressed_files_are_known_by_what_they_hold(tmp_path):
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
        assert len(rows(path)) == 40


def test_ends_of_lines_quotes_and_words_for_nothing_are_what_they_are(tmp_path):
    (tmp_path / "x").write_bytes('"a\t"\t1\r\nNULL\t\t-2\r\n\r\n\xe4 b\t-\t3\r\n'.encode())
    assert rows(tmp_path / "x", 100) == [('"a', 1), ("NULL", -2), ("ä b", 3)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"a\t1", "2 column(s) found, 3 separated by tabs expected: 'a\\t1'"),
        (b"a\tb\t1\t", "4 column(s) found, 3 separated by tabs expected: 'a\\tb\\t1\\t'"),
        (b"b" * 90, "1 column(s) found, 3 separated by tabs expected: '" + "b" * 80 + "...'"),
        (b"\tb\t1", "the name is empty: '\\tb\\t1'"),
        (b"a\tb\t", "the number is empty: 'a\\tb\\t'"),
        (b"a\tb\t1.5", "'1.5' found, the number is a whole number below 2^63: 'a\\tb\\t1.5'"),
        (b"a\tb\t9223372036854775808", "'9223372036854775808' found, the number is a whole number below 2^63: "),
        (b"a\xff\tb\t1", "not UTF-8: byte 1 of the line is 0xff; convert the file to UTF-8"),
        (b"x" * 500, "a line of more than 100 bytes; is this a text file?"),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 25])
def test_a_bad_line_is_told_with_its_number(tmp_path, line, problem, before):
    """Empty lines count."""
    path = tmp_path / "x"
    path.write_bytes(b"\n" + text(before).encode() + line + b"\n" + text(20).encode())
    assert told(path, 100).startswith(f"{path}:{before + 2}: {problem}")


def test_what_can_not_be_read(tmp_path):
    whole = gzip.compress(text(5000).encode())
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged").write_bytes(whole[:20] + b"\0\xff" * 500)
    with zipfile.ZipFile(tmp_path / "two", "w") as archive:
        archive.writestr("a", "1")
        archive.writestr("b", "2")
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04" + b"?" * 50)
    assert "can't be read" in told(tmp_path / "cut", 1000)
    assert "can't be read" in told(tmp_path / "damaged", 1000)
    assert told(tmp_path / "two") == f"{tmp_path / 'two'}: an archive of 2 files, one expected: a, b"
    assert "can't be read" in told(tmp_path / "no.zip")
    advice = "; give a file of text, plain, .gz or .zip"
    assert told(tmp_path) == f"{tmp_path}: can't be read: Is a directory{advice}"
    assert told(tmp_path / "none") == f"{tmp_path / 'none'}: can't be read: No such file or directory{advice}"


def test_the_line_of_a_row():
    block = Block(7, b"a\n\n\r\nb\nc")
    assert [line_of(block, row) for row in range(3)] == [7, 10, 11]
