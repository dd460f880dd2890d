import pytest

from common.reader.files import DataError
from projects.home.recap.tools.prepare.columns import IngestOptions
from projects.home.recap.tools.prepare.csv_format import CsvFormat, sniff


@pytest.mark.parametrize(
    ("content", "options", "advice"),
    [
        ("a|b\n1|2\n", {}, r"line 1: the delimiter does not occur in 'a\|b'.*--delimiter '\|'$"),
        ("a;b\n1;2\n", {"delimiter": ","}, "--delimiter ';'$"),
        ("a\tb,c\td\n1\t2\t3\n", {"delimiter": "|"}, "--delimiter tab$"),
        ("1|2\n", {"names": ("a", "b")}, r"--delimiter '\|'$"),
    ],
)
def test_another_delimiter_is_an_error_that_proposes_it(tmp_path, content, options, advice):
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(DataError, match=advice):
        sniff(tmp_path / "table.csv", IngestOptions(**options))


def test_a_table_may_have_one_column(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("10:20\n10:30\n")
    assert sniff(path, IngestOptions(names=("time",))) == CsvFormat(",", ("10:20",), False)


def test_a_header_and_names_for_the_columns_are_an_error(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("Age, education-num, Salary\n1, 2, 3\n")
    with pytest.raises(DataError, match=r"line 1: the line has names of columns, such as 'Age'.*Remove --columns, or"):
        sniff(path, IngestOptions(names=("age", "education_num", "income")))
    assert not sniff(path, IngestOptions(names=("age", "work", "income"))).header
