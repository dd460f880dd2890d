import csv
import gzip
import io
import random
from pathlib import Path
from typing import Any

import pytest

from common.reader.files import DataError
from projects.home.recap.tools.prepare import csv_file
from projects.home.recap.tools.prepare.columns import IngestOptions
from projects.home.recap.tools.prepare.csv_format import DELIMITERS, sniff


def read(path: Path, **options: Any) -> list[tuple[str | None, ...]]:
    """Return the rows of a file. `options` are those of IngestOptions."""
    csv_format = sniff(path, IngestOptions(**options))
    return [tuple(row.values()) for batch in csv_file.read_batches(path, csv_format, int) for row in batch.to_pylist()]


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("a,b\n1,2\n", [("1", "2")]),
        ("a,b\n1,2", [("1", "2")]),
        ("a,b\r\n1,2\r\n3,4\r\n", [("1", "2"), ("3", "4")]),
        ("a,b\r1,2\r3,4", [("1", "2"), ("3", "4")]),
        ("a,b\n1,2\r\n3,4\r5,6\n", [("1", "2"), ("3", "4"), ("5", "6")]),
        ("\ufeffa,b\n1,2\n", [("1", "2")]),
        ('\ufeff"a",b\n1,2\n', [("1", "2")]),
        ("a,b\n\n1,2\n\n\n3,4\n\n", [("1", "2"), ("3", "4")]),
        ("\n\na,b\n1,2\n", [("1", "2")]),
        ('a,b\n"",\n', [("", None)]),
        ('a,b\n"x,y","say ""so"""\n', [("x,y", 'say "so"')]),
        ('a,b\n"x\ny","\r\n"\n', [("x\ny", "\r\n")]),
        ('a,"b\nc"\n1,2\n', [("1", "2")]),
        ("a,b\n x , y\n", [(" x ", " y")]),
        ("a,b\n,\n", [(None, None)]),
        ("a,b\nNULL,NA\n", [("NULL", "NA")]),
        ("a,b\nü,\U0001f600\n", [("ü", "\U0001f600")]),
        ("a\tb\n1,5\t2\n", [("1,5", "2")]),
        ("a;b\n1,5;2,5\n", [("1,5", "2,5")]),
        ('a,b\n"x;y;z",1\n"p",2\n', [("x;y;z", "1"), ("p", "2")]),
        ("a\n1\n2\n", [("1",), ("2",)]),
        ("a,b\n", []),
    ],
)
def test_fields_are_text_as_written(tmp_path, content, rows):
    path = written(tmp_path, content)
    assert read(path) == rows
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read(path) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "table.csv: this file is empty"),
        ("\n \n\n"[:1], "table.csv: this file is empty"),
        ("a,b\n1,2\n1,2,3\n", r"table.csv, line 3: the row has 3 fields \('1', '2', '3'\), but the first line has 2"),
        ("a,b\n1,2\n\n1\n", r"table.csv, line 4: the row has 1 fields \('1'\), but the first line has 2"),
        ('a,b\n"x\ny",2\n1\n', "table.csv, line 4: the row has 1 fields"),
        ("a,b\r\n1,2\r\n1\r\n", "table.csv, line 3: the row has 1 fields"),
        ('a,b\n1,2\n3,"x\n5,6\n', "table.csv, line 3: a quotation mark in the row that begins here is not closed"),
        ('a,b\n1,2\n3,"x', "table.csv, line 3: a quotation mark in the row that begins here is not closed"),
        ('a,b\n1,2\n"3,x\n5,6\n', "table.csv, line 3: the row has 1 fields .* Is a quotation mark not closed"),
        (b"a,b\n1,2\n3,caf\xe9\n", r"table.csv, line 3: the text b'caf\\xe9' is not UTF-8.*iconv -f WINDOWS-1252"),
        ("a,b\n1,2\n".encode("utf-16"), "table.csv is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 table.csv"),
        ("1,2\n3,4\n", "table.csv, line 1: the first line should have the names .* '1' is a number.*--columns"),
        (
            gzip.compress(b"a,b\n" + b"1,2\n" * 1000, mtime=0)[:-9],
            "table.csv: cannot read this file: Compressed file ended",
        ),
    ],
)
def test_a_file_that_is_not_a_table_is_an_error_with_the_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, content))


def test_damage_deep_in_a_large_file_is_found(tmp_path):
    """More than one block, so that pyarrow does not know the row."""
    row = b"1," + b"x" * 1000 + b"\n"
    path = written(tmp_path, b"a,b\n" + row * 40_000 + b"1\n" + row)
    with pytest.raises(DataError, match=r"table\.csv, line 40002: the row has 1 fields"):
        read(path)


def test_a_huge_field_is_read_and_a_larger_one_is_an_error(tmp_path):
    text = "x" * (csv_file.MAX_ROW_BYTES // 2)
    assert read(written(tmp_path, f"a,b\n1,{text}\n2,3\n")) == [("1", text), ("2", "3")]
    with pytest.raises(DataError, match=r"table.csv, line 2: the row that begins here is larger than 16.0 MiB"):
        read(written(tmp_path, f"a,b\n1,{text * 4}\n2,3\n"))


def test_names_replace_a_header(tmp_path):
    path = written(tmp_path, "1,x\n2,y\n")
    assert read(path, names=("a", "b")) == [("1", "x"), ("2", "y")]
    assert read(path, header=True) == [("2", "y")]
    with pytest.raises(DataError, match="--columns has 3 names, but the line has 2 fields"):
        read(path, names=("a", "b", "c"))


def test_a_stated_delimiter_is_not_detected(tmp_path):
    assert read(written(tmp_path, "a|b,c\n1|2,3\n"), delimiter="|") == [("1", "2,3")]


@pytest.mark.parametrize("seed", range(40))
def test_rows_are_those_of_pythons_csv_module(tmp_path, seed):
    """Random fields with the characters that matter, written with random quoting, delimiters and ends of lines."""
    random_source = random.Random(seed)
    delimiter = random_source.choice(DELIMITERS)
    alphabet = "ab1.é\"\n\r,;\t \\'"
    width = random_source.randint(2, 5)
    rows = [
        ["".join(random_source.choices(alphabet, k=random_source.randint(0, 4))) for _ in range(width)]
        for _ in range(random_source.randint(1, 30))
    ]
    text = io.StringIO(newline="")
    writer = csv.writer(
        text,
        delimiter=delimiter,
        lineterminator="\r\n",
        quoting=csv.QUOTE_ALL if random_source.random() < 0.5 else csv.QUOTE_MINIMAL,
    )
    writer.writerow([f"name{index}" for index in range(width)])
    writer.writerows(rows)
    path = tmp_path / "table.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    with path.open(encoding="utf-8", newline="") as file:
        _, *expected = csv.reader(file, delimiter=delimiter)
    found = read(path, delimiter=delimiter)
    assert [[field or "" for field in row] for row in found] == expected == rows


@pytest.mark.parametrize("seed", range(60))
def test_random_text_is_read_as_by_pythons_csv_module_or_refused(tmp_path, seed):
    """Text that nobody would write: quotation marks within fields, rows of different lengths, unclosed quotes."""
    random_source = random.Random(seed)
    text = "".join(random_source.choices('a1",,\n\n\r', [4, 2, 1, 4, 4, 2, 1, 1], k=random_source.randint(1, 25)))
    path = tmp_path / "table.csv"
    path.write_text(f"x,y\n{text}", newline="")
    with path.open(newline="") as file:
        _, *rows = filter(None, csv.reader(file))
    quotes_are_closed = list(csv.reader(io.StringIO(f"{text}\nlast,row", newline="")))[-1:] == [["last", "row"]]
    if quotes_are_closed and all(len(row) == 2 for row in rows):
        assert [[field or "" for field in row] for row in read(path, delimiter=",")] == rows
    else:
        with pytest.raises(DataError, match=r"table\.csv, line \d+: "):
            read(path, delimiter=",")


@pytest.mark.parametrize("row", [0, 1, 2])
def test_the_line_of_a_row_counts_breaks_within_fields_and_blank_lines(tmp_path, row):
    path = written(tmp_path, 'a,b\n1,2\n\n"x\ny",3\n4,5\n')
    assert csv_file.line_of(path, sniff(path, IngestOptions()), row) == [2, 4, 6][row]
