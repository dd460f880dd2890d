import argparse

import pytest

from common.errors import UserError
from projects.home.recap.tools.prepare.columns import IngestOptions
from projects.home.recap.tools.prepare.input_arguments import add_input_arguments, input_options
from tests.support.ingestion import ingested_column


def parsed(*arguments: str) -> IngestOptions:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_input_arguments(parser)
    return input_options(parser.parse_args(arguments))


def test_defaults_are_those_of_the_options():
    assert parsed() == IngestOptions()


def test_each_option_is_read():
    options = parsed(
        *("--null_values", "?,-999", "--null_values", "x", "--columns", "a,b c", "--header", "--delimiter", "tab"),
        *("--decimal", ",", "--date_format", "%d/%m/%Y", "--date_format", "last=day=%Y%m%d"),
    )
    assert options == IngestOptions(
        null_values=("?", "-999", "x"),
        names=("a", "b c"),
        header=True,
        delimiter="\t",
        decimal=",",
        date_formats={"": "%d/%m/%Y", "last=day": "%Y%m%d"},
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--delimiter", "ab"),
        ("--delimiter", '"'),
        ("--delimiter", ""),
        ("--date_format", "x=d"),
        ("--date_format", "=%d"),
    ],
)
def test_invalid_values_are_refused(option, value):
    with pytest.raises(argparse.ArgumentError, match="is not"):
        parsed(option, value)


def test_a_format_that_strptime_does_not_know_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--date_format %Q: this is not a format of strptime"):
        ingested_column(tmp_path, ["1"], date_formats={"x": "%Q"})
