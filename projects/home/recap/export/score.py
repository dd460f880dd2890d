"""Scores rows with an exported Heavy Ranker. Needs numpy and onnxruntime or torch alone; uses xxhash if present.

python score.py < rows.jsonl        # reads an object {column: value} per line, and writes the outputs of each
outputs = Ranker("DIR")(columns)    # returns numpy arrays by name, given a numpy array or a list by column
"""

import contextlib
import functools
import importlib.util
import json
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
ERRORS, MASK, P5 = (TypeError, ValueError, OverflowError), 2**64 - 1, 0x27D4EB2F165667C5  # P1 to P5: primes of XXH64
P1, P2, P3, P4 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63


class Ranker:
    """Scores columns of equal lengths, in which None and NaN are missing values."""

    def __init__(self, directory: str | Path = Path(__file__).parent, model: str | None = None) -> None:
        """Load the file `model` of an export; by default model.onnx, or model.pt2 if onnxruntime is not installed."""
        path = Path(directory)
        self.signature = json.loads((path / "signature.json").read_text("utf-8"))
        self.features = [Feature(entry, path) for entry in self.signature["encoding"]]
        self.columns = list(dict.fromkeys(name for each in self.features for name in each.columns))
        use_onnx = importlib.util.find_spec("onnxruntime") and (path / "model.onnx").exists()
        self.run = load(path / (model or ("model.onnx" if use_onnx else "model.pt2")))

    def __call__(self, columns: Any) -> Any:
        """Return the outputs by name, [rows, tasks] in the order of signature["tasks"]; score, if any, is [rows]."""
        return self.run(self.encode(columns))

    @np.errstate(all="ignore")
    def encode(self, columns: Any) -> dict[str, Any]:
        """Return the inputs of the model by name. Raises ValueError with the column and row, from 0, of a bad value."""
        if absent := [name for name in self.columns if name not in columns]:
            raise ValueError(f"no column {', '.join(map(repr, absent))}; found {', '.join(map(repr, columns))}")
        rows, *others = {len(columns[name]) for name in self.columns}
        require(not others, "columns of equal lengths")
        inputs = {each["name"]: np.zeros((rows, each["shape"][1]), each["dtype"]) for each in self.signature["inputs"]}
        for feature in self.features:
            try:
                feature.encode(columns, inputs)
            except ERRORS:
                for row in range(rows):  # find the one
                    one = {name: columns[name][row : row + 1] for name in feature.columns}
                    try:
                        feature.encode(one, {name: values[:1] for name, values in inputs.items()})
                    except ERRORS as error:
                        raise ValueError(f"row {row}, column {feature.column!r}: {error}; found {one}") from None
                raise
        return inputs


def load(path: Path) -> Any:
    """Return a function from the inputs of a model to its outputs."""
    if path.suffix == ".onnx":
        session = importlib.import_module("onnxruntime").InferenceSession(path)
        names = [each.name for each in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
    torch = importlib.import_module("torch")
    model = torch.export.load(path).module()
    return lambda inputs: {k: v.numpy() for k, v in model({k: torch.from_numpy(v) for k, v in inputs.items()}).items()}


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

    def to_lists(self, columns: Any) -> Any:
        """Return a list per value. `length` is None for a column without lists, and 0 for lists of any length."""
        values, length = columns[self.column], self.entry["length"]
        if length is None:
            return [[value] for value in values]
        lists = [[None] * (length or 1) if each is None or isinstance(each, float) else each for each in values]
        good = all(isinstance(each, (list, tuple, np.ndarray)) and length in (0, len(each)) for each in lists)
        require(good, f"a list of {length or 'any number of'} values")
        return lists

    def to_numbers(self, columns: Any, null: Any) -> Any:
        """Return numbers as [rows, length or 1]. `null` replaces None; if it is None, it is an error."""
        values, shape = columns[self.column], (len(columns[self.column]), self.entry["length"] or 1)
        with contextlib.suppress(ValueError):  # lists of different lengths
            array = np.asarray(values if getattr(values, "dtype", "O") != "O" else list(values))
            if array.dtype.kind in "biuf" and array.shape == (shape if self.entry["length"] else shape[:1]):
                return array.reshape(shape)
        flat = [null if item is None else item for items in self.to_lists(columns) for item in items]
        require(all(issubclass(each, (Number, np.bool_)) for each in set(map(type, flat))), "numbers")
        array = np.array(flat).reshape(shape)
        return array if array.dtype.kind in "biuf" else array.astype(np.float64)

    def numbers(self, columns: Any, inputs: Any, array: Any = None) -> None:
        """Encode a number, a boolean, a vector of numbers or an embedding."""
        entry, array = self.entry, self.to_numbers(columns, np.nan) if array is None else array
        array = array.astype(np.float64).astype(np.float32)  # integers are rounded twice, as in training
        missing, begin, indicator = ~np.isfinite(array), entry["begin"], entry["indicator"]
        require(not entry["boolean"] or (missing | (array == 0) | (array == 1)).all(), "true, false, 0, 1 or null")
        array = np.where(missing, np.array(entry["missing"], np.float32), array)
        inputs[entry["input"]][:, begin : begin + array.shape[1]] = array
        if indicator is not None:
            inputs["binary"][:, indicator : indicator + array.shape[1]] = missing

    def vector(self, columns: Any, inputs: Any) -> None:
        """Copy the `positions` of a vector of a schema, which has no nulls, rounded as in training."""
        array, dtype = self.to_numbers(columns, None), self.entry["rounded_to"]
        for place, number in self.entry["num_ids"]:
            require(((array[:, place] >= 0) & (array[:, place] < number)).all(), f"ids below {number} at {place}")
        kept = array[:, self.entry["positions"]]
        rounded = kept.astype(np.float32 if dtype == "bfloat16" else dtype)
        if dtype == "bfloat16":
            bits = rounded.view(np.uint32)
            rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
        fits = rounded == kept if rounded.dtype.kind in "iu" else np.isfinite(rounded) | ~np.isfinite(kept)
        require(dtype in ("bfloat16", "bool", "float32") or fits.all(), f"numbers that fit {dtype}")
        inputs[self.entry["input"]][:] = rounded

    def categories(self, columns: Any, inputs: Any) -> None:
        """Encode a value, or the last `max_length` values of a list, as ids: rows of an embedding table."""
        begin, width = self.entry["begin"], self.entry["max_length"] * self.entry["num_hashes"]
        ids = [[row for item in items for row in self.rows_of(item)] for items in self.to_lists(columns)]
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


def mixed(number: int, bits: int, prime: int) -> int:
    return ((number & MASK) << bits | (number & MASK) >> (64 - bits)) * prime


def python_xxh64(data: bytes, seed: int) -> int:
    """Return the XXH64 of bytes (github.com/Cyan4973/xxHash, doc/xxhash_spec.md)."""
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) - 7, 8)]
    striped, rest, lanes = len(words) // 4 * 4, data[len(words) * 8 :], [seed + P1 + P2, seed + P2, seed, seed - P1]
    for index, word in enumerate(words[:striped]):
        lanes[index % 4] = mixed(lanes[index % 4] + word * P2, 31, P1)
    number = sum(mixed(lane, bits, 1) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
    for lane in lanes:
        number = (number ^ mixed(lane * P2, 31, P1)) * P1 + P4
    number = (number if striped else seed + P5) + len(data)
    for word in words[striped:]:
        number = mixed(number ^ mixed(word * P2, 31, P1), 27, P1) + P4
    if len(rest) >= 4:
        number = mixed(number ^ int.from_bytes(rest[:4], "little") * P1, 23, P2) + P3
    for byte in rest[len(rest) & 4 :]:
        number = mixed(number ^ byte * P5, 11, P1)
    for shift, prime in ((33, P2), (29, P3), (32, 1)):
        number = ((number & MASK) ^ (number & MASK) >> shift) * prime
    return number & MASK


xxh64: Any = python_xxh64
with contextlib.suppress(ImportError):
    from xxhash import xxh64_intdigest as xxh64

if __name__ == "__main__":
    ranker = Ranker()
    for row in map(json.loads, sys.stdin):
        outputs = ranker({name: [row[name]] for name in ranker.columns})
        sys.stdout.write(json.dumps({name: values[0].tolist() for name, values in outputs.items()}) + "\n")
