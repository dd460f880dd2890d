"""Scores rows with an exported Heavy Ranker: python score.py < rows.jsonl, or Ranker("DIR")({"column": values, ...}).

Needs numpy and onnxruntime or torch; hashes with xxhash, or else xxh64.py. signature.json says how to encode columns.
"""

import functools
import importlib.util
import json
import runpy
import sys
import zoneinfo
from datetime import UTC, date, datetime, timedelta
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np

MISSING_ROW, UNKNOWN_ROW, FIRST_VALUE_ROW, NO_ROW = 0, 1, 2, -1  # ids: rows of a table; NO_ROW after the end of a list
EPOCH, DAY, BEGIN, END = datetime(1970, 1, 1, tzinfo=UTC), 86_400, -62_135_596_800, 253_402_300_800  # years 1 to 9999
UNITS = {"days": (DAY, 1), "hours": (3600, 1), "minutes": (60, 1), "ms": (1, 10**3), "us": (1, 10**6), "ns": (1, 10**9)}


class Ranker:
    """Scores numpy arrays or lists of one length, by the name of their column; None and NaN are missing values."""

    def __init__(self, directory: str | Path = Path(__file__).parent, model: str | None = None) -> None:
        """Load the file `model` of an export; by default model.onnx, or model.pt2 if onnxruntime is not installed."""
        path = Path(directory)
        self.signature = json.loads((path / "signature.json").read_text("utf-8"))
        self.features = [Feature(entry, path) for entry in self.signature["encoding"]]
        self.columns = list(dict.fromkeys(name for each in self.features for name in each.columns))
        use_onnx = importlib.util.find_spec("onnxruntime") and (path / "model.onnx").exists()
        path /= model or ("model.onnx" if use_onnx else "model.pt2")
        if path.suffix == ".onnx":
            session = importlib.import_module("onnxruntime").InferenceSession(path)
            names = [each.name for each in session.get_outputs()]
            self.run: Any = lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
        else:
            torch = importlib.import_module("torch")
            run = torch.export.load(path).module()
            self.run = lambda x: {k: v.numpy() for k, v in run({k: torch.from_numpy(v) for k, v in x.items()}).items()}

    def __call__(self, columns: Any) -> Any:
        """Return the outputs by name, [rows, tasks] in the order of signature["tasks"]; score, if any, is [rows]."""
        return self.run(self.encode(columns))

    @np.errstate(all="ignore")
    def encode(self, columns: Any) -> dict[str, Any]:
        """Return the inputs of the model by name. Raises ValueError with the column and row, from 0, of a bad value."""
        lengths: dict[str, Any] = {name: len(columns[name]) if name in columns else None for name in self.columns}
        rows, *others = set(lengths.values())
        require(rows is not None and not others, f"columns of one length, but theirs are {lengths}; None is absent")
        inputs = {each["name"]: np.zeros((rows, each["shape"][1]), each["dtype"]) for each in self.signature["inputs"]}
        for feature in self.features:
            try:
                feature.encode(columns, inputs)
            except (TypeError, ValueError, OverflowError):
                for row in range(rows):  # find the one
                    one = {name: columns[name][row : row + 1] for name in feature.columns}
                    try:
                        feature.encode(one, {name: values[:1] for name, values in inputs.items()})
                    except (TypeError, ValueError, OverflowError) as error:
                        raise ValueError(f"row {row}, column {feature.column!r}: {error}; found {one}") from None
                raise
        return inputs


def require(good: bool, expected: str) -> None:
    if not good:
        raise ValueError(f"expected {expected}")


class Feature:
    """Encodes an entry of the signature's "encoding". Each kind has a method, which fills its part of the inputs."""

    def __init__(self, entry: Any, path: Path) -> None:
        self.entry, self.column, self.encode = entry, entry["column"], getattr(self, entry["kind"])
        self.age = Feature(entry["age"], path) if entry.get("age") else None
        self.columns: list[str] = [self.column, *(self.age.columns if self.age else [])]
        self.rows_of = functools.lru_cache(100_000, typed=True)(self.find_rows)
        file, integers = entry.get("vocabulary"), range(entry.get("num_values") or 0)
        values = json.loads((path / file).read_text("utf-8")) if file else integers
        self.vocabulary = {value: FIRST_VALUE_ROW + index for index, value in enumerate(values)}

    def to_lists(self, values: Any) -> Any:
        """Return a list per value. `length` is None for a column without lists, and 0 for lists of any length."""
        if (length := self.entry["length"]) is None:
            return [[value] for value in values]
        null = [None] * (length or 1)
        lists = [null if each is None or (isinstance(each, float) and each != each) else each for each in values]
        good = all(isinstance(each, (list, tuple, np.ndarray)) and length in (0, len(each)) for each in lists)
        require(good, f"a list of {length or 'any number of'} values")
        return lists

    def to_numbers(self, columns: Any, null: Any) -> Any:
        """Return numbers as [rows, length or 1]. `null` replaces None; if it is None, it is an error."""
        values, length = columns[self.column], self.entry["length"]
        shape = (len(values),) if length is None else (len(values), length)
        is_array = isinstance(values, np.ndarray) and values.dtype.kind in "biuf" and values.shape == shape
        array = values if is_array else np.array(self.to_lists(values))
        if array.dtype.kind not in "biuf" or array.ndim > 2:
            flat = [null if item is None else item for items in self.to_lists(values) for item in items]
            require(all(issubclass(each, (Number, np.bool_)) for each in set(map(type, flat))), "numbers")
            array = np.array(flat)
        return (array.astype(np.float64) if array.dtype.kind == "O" else array).reshape(len(values), length or 1)

    def numbers(self, columns: Any, inputs: Any, array: Any = None) -> None:
        """Encode a number, a boolean, a vector of numbers, or the `positions` of one that training rounds to a type."""
        entry, begin, dtype = self.entry, self.entry["begin"], self.entry["rounded_to"]
        array = self.to_numbers(columns, np.nan if entry["nullable"] else None) if array is None else array
        for place, number in entry["num_ids"]:
            require(((array[:, place] >= 0) & (array[:, place] < number)).all(), f"ids below {number} at {place}")
        array = array[:, entry["positions"] or slice(None)].astype(np.float64 if entry["nullable"] else array.dtype)
        rounded = array.astype("f4" if dtype == "bfloat16" else dtype)
        if dtype == "bfloat16":
            rounded = ((rounded.view("u4") + 0x7FFF + (rounded.view("u4") >> 16 & 1)) & 0xFFFF0000).view("f4")
        missing = ~np.isfinite(rounded)
        fits = rounded == array if rounded.dtype.kind in "iu" else ~missing | ~np.isfinite(array) | (dtype != "float16")
        require(fits.all(), f"numbers that fit {dtype}")
        require(not entry["boolean"] or (missing | (rounded == 0) | (rounded == 1)).all(), "true, false, 0, 1 or null")
        rounded = np.where(missing, np.array(entry["missing"], rounded.dtype), rounded)
        inputs[entry["input"]][:, begin : begin + rounded.shape[1]] = rounded
        if (indicator := entry["indicator"]) is not None:
            inputs["binary"][:, indicator : indicator + rounded.shape[1]] = missing

    def categories(self, columns: Any, inputs: Any) -> None:
        """Encode a value, or the last `max_length` values of a list, as ids: rows of an embedding table."""
        begin, width = self.entry["begin"], self.entry["max_length"] * self.entry["num_hashes"]
        ids = [[row for item in items for row in self.rows_of(item)] for items in self.to_lists(columns[self.column])]
        padded = [each[-width:] + [NO_ROW] * (width - len(each)) for each in ids]
        inputs["ids"][:, begin : begin + width] = np.array(padded, np.int32).reshape(-1, width)

    def find_rows(self, value: Any) -> tuple[int, ...]:
        """Return the rows of a value, one per hash."""
        if value is None or value != value:
            return (MISSING_ROW, NO_ROW)[: self.entry["num_hashes"]]
        kind = "strings" if isinstance(value, str) else "integers" if isinstance(value, (Number, np.bool_)) else ""
        require(kind in self.entry["values"], " or ".join(self.entry["values"]))
        if (buckets := self.entry["hash_buckets"]) is None:
            return (self.vocabulary.get(value, UNKNOWN_ROW),)
        if kind == "integers":
            value = value.item() if isinstance(value, np.generic) else value
            require(-(2**63) <= value < 2**63 and value == int(value), "strings, or integers from -2^63 to 2^63 - 1")
        data = value.encode() if kind == "strings" else int(value).to_bytes(8, "little", signed=True)
        hashes = [first := xxh64(data, 42), xxh64(data, first)][: self.entry["num_hashes"]]
        return tuple(FIRST_VALUE_ROW + (each - (each >> 63 << 64)) % buckets for each in hashes)

    def timestamp(self, columns: Any, inputs: Any) -> None:
        """Encode the local hour and day of the week as ids, and the time to another column, the age, as a number."""
        zone, (seconds, fraction, missing) = zoneinfo.ZoneInfo(self.entry["time_zone"]), self.to_times(columns)
        moments = [EPOCH + timedelta(seconds=each) for each in seconds.clip(BEGIN + DAY, END - 1 - DAY).tolist()]
        offsets = [round((each.astimezone(zone).utcoffset() or timedelta()).total_seconds()) for each in moments]
        local = seconds + np.array(offsets, np.int64)
        for part, value in (("hour_of_day", local % DAY // 3_600), ("day_of_week", (local // DAY + 3) % 7)):
            if self.entry[part] is not None:
                inputs["ids"][:, self.entry[part]] = np.where(missing, MISSING_ROW, value + FIRST_VALUE_ROW)
        if self.age is not None:
            end, end_fraction, end_missing = self.age.to_times(columns)
            ages = ((end - seconds) + (end_fraction - fraction)) / self.age.entry["seconds"]
            self.age.numbers(columns, inputs, np.where(missing | end_missing, np.nan, ages)[:, None])

    def to_times(self, columns: Any) -> tuple[Any, Any, Any]:
        """Return seconds since 1970 in UTC, rounded down, the fractions after them, and what is missing."""
        values, unit, null = columns[self.column], self.entry["unit"], -(2**63)
        if unit is not None:
            array = self.to_numbers(columns, null)[:, 0]
        else:
            if not (isinstance(values, np.ndarray) and values.dtype.kind == "M"):
                values = np.array([to_utc(each) for each in values], "datetime64[us]")
            unit = np.datetime_data(values.dtype)[0]
            array = (values if unit in UNITS else values.astype("datetime64[s]")).astype(np.int64)
        scale, per_second = UNITS.get(unit, (1, 1))
        present = (array != null) & (array >= BEGIN * per_second // scale) & (array < END * per_second // scale)
        array = np.where(present, array, 0).astype(np.float64 if array.dtype.kind == "f" else np.int64) * scale
        array, per_second = (array / per_second, 1) if array.dtype.kind == "f" else (array, per_second)
        seconds, rest = np.divmod(array, per_second)
        return seconds.astype(np.int64), rest / per_second, ~present


def to_utc(value: Any) -> Any:
    value = datetime.fromisoformat(value) if isinstance(value, str) else value
    require(value is None or value != value or isinstance(value, date), "timestamps or dates")
    is_zoned = getattr(value, "tzinfo", None) is not None
    return value.astimezone(UTC).replace(tzinfo=None) if is_zoned else value if value == value else None


if importlib.util.find_spec("xxhash"):
    xxh64 = importlib.import_module("xxhash").xxh64_intdigest
else:
    xxh64 = runpy.run_path(str(Path(__file__).with_name("xxh64.py")))["xxh64"]

if __name__ == "__main__":
    ranker = sys.exit(__doc__) if sys.argv[1:] else Ranker()
    for number, line in enumerate(sys.stdin, 1):
        try:
            outputs = ranker({name: [value] for name, value in json.loads(line).items()})
        except (AttributeError, ValueError) as error:
            sys.exit(f"line {number}: {error}")
        print(json.dumps({name: values[0].tolist() for name, values in outputs.items()}), flush=True)  # noqa: T201
