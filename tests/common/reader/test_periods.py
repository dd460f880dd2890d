import datetime

import pytest

from common.reader.periods import DAY, HOUR

FIVE = datetime.datetime(2023, 1, 31, 5)


@pytest.mark.parametrize("text", ["2023-01-31", "2023/01/31", "2024-02-29"])
def test_spellings_of_a_day(text):
    year, month, day = map(int, text.replace("/", "-").split("-"))
    assert DAY.parse(text) == datetime.datetime(year, month, day)


@pytest.mark.parametrize("text", ["2023-01-31T05", "2023-01-31 05", "2023/01/31/05"])
@pytest.mark.parametrize("minutes", ["", ":00"])
def test_spellings_of_an_hour(text, minutes):
    assert HOUR.parse(text + minutes) == FIVE


@pytest.mark.parametrize(
    "text",
    [
        *("", "today", "2023-1-31", "2023-02-29", "2023-13-01", "31-01-2023", "2023-01/31", "20230131"),
        *("2023-01-31T05", " 2023-01-31", "2023-01-31\n", "23-01-31", "0999-01-31"),
    ],
)
def test_invalid_day(text):
    with pytest.raises(ValueError, match=r"^not a valid day; write it as 2023-01-31 or 2023/01/31$"):
        DAY.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "2023-01-31", "2023-01-31T24", "2023-01-31T5", "2023-01-31T05:30", "2023-02-29T05"),
        *("2023-01-31T05:00:00", "2023-01-31T05Z", "2023-01-31/05"),
    ],
)
def test_invalid_hour(text):
    spellings = "2023-01-31T05, 2023-01-31T05:00, .*, 2023/01/31/05 or 2023/01/31/05:00"
    with pytest.raises(ValueError, match=f"^not a valid hour; write it as {spellings}$"):
        HOUR.parse(text)
