"""Scores rows with an exported Heavy Ranker. Needs numpy and onnxruntime or torch alone; uses xxhash if present.

    python score.py < rows.jsonl        # reads an object {column: value} per line, and writes the outputs of each
    outputs = Ranker("DIR")(columns)    # returns numpy arrays by name, given a numpy array or a list by column

signature.json lists the features, and how their columns fill the inputs of the model.
"""

import contextlib
import functools
import importlib.util
import itertools
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
NULL_TIME, MASK, ERRORS = -(2**63), 2**64 - 1, (TypeError, ValueError, OverflowError)
P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9  # primes of XXH64
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


class Ranker:
    """Scores columns of equal lengths, in which None and NaN are missing values."""

    def __init__(self, directory: str | Path = Path(__file__).parent, model: str | None = None) -> None:
        """Load the file `model` of an export; by default model.onnx, or model.pt2 if onnxruntime is not installed."""
        path = Path(directory)
        self.signature = json.loads((path / "signature.json").read_text("utf-8"))
        self.features = [Feature(spec, path) for spec in self.signature["encoding"]]
        self.columns = list(dict.fromkeys(name for each in self.features for name in each.columns))
        use_onnx = importlib.util.find_spec("onnxruntime") and (path / "model.onnx").exists()
        self.run = load(path / (model or ("model.onnx" if use_onnx else "model.pt2")))

    def __call__(self, columns: Any) -> Any:
        """Return the outputs by name: [rows, tasks] in the order of signature["tasks"]; score, if any, is [rows].

        Raises ValueError, with the column and the row counted from 0, for a value that training would refuse.
        """
        return self.run(self.encode(columns))

    def encode(self, columns: Any) -> dict[str, Any]:
        """Return the inputs of the model by name, [rows, width]. Raises ValueError as above."""
        if absent := [name for name in self.columns if name not in columns]:
            raise ValueError(f"no column {', '.join(map(repr, absent))}; found {', '.join(map(repr, columns))}")
        rows, *others = {len(columns[name]) for name in self.columns}
        require(not others, "columns of equal lengths")
        inputs = {each["name"]: np.zeros((rows, each["shape"][1]), each["dtype"]) for each in self.signature["inputs"]}
        for feature in self.features:
            try:
                feature.encode(columns, inputs)
            except ERRORS:
                for row in range(rows):  # find the row
                    one = {name: columns[name][row : row + 1] for name in feature.columns}
                    try:
                        feature.encode(one, {name: values[:1] for name, values in inputs.items()})
                    except ERRORS as error:
                        raise ValueError(f"{error}, found {one}, row {row}") from None
                raise
        return inputs


def load(path: Path) -> Any:
    """Return a function from the inputs of a model to its outputs."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        names = [each.name for each in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
    import torch

    model = torch.export.load(path).module()
    return lambda inputs: {k: v.numpy() for k, v in model({k: torch.from_numpy(v) for k, v in inputs.items()}).items()}


class Feature:
    """Encodes an entry of signature["encoding"]. Each kind has a method, which fills its part of the inputs."""

    def __init__(self, spec: Any, path: Path) -> None:
        self.spec, self.column, self.age = spec, spec["column"], Feature(spec["age"], path) if spec.get("age") else None
        self.columns: list[str] = [self.column, *(self.age.columns if self.age else [])]
        self.encode = getattr(self, spec["kind"])
        self.rows_of = functools.lru_cache(100_000, typed=True)(self.find_rows)
        file, num_values = spec.get("vocabulary"), spec.get("num_values") or 0
        values = json.loads((path / file).read_text("utf-8")) if file else range(num_values)
        self.vocabulary = {value: FIRST_VALUE_ROW + index for index, value in enumerate(values)}

    def lists(self, values: Any) -> Any:
        """Return values as lists; a null list has nulls. `length` is None for a column without lists, and 0 for any."""
        if (length := self.spec["length"]) is None:
            return [[value] for value in values]
        lists = [[None] * (length or 1) if is_missing(value) else value for value in values]
        good = all(isinstance(each, (list, tuple, np.ndarray)) and length in (0, len(each)) for each in lists)
        require(good, f"a list of {length or 'any number of'} values")
        return lists

    def to_numbers(self, values: Any, null: Any) -> Any:
        """Return numbers as [rows, length or 1]. `null` replaces None; if it is None, it is an error."""
        shape = (len(values),) if self.spec["length"] is None else (len(values), self.spec["length"])
        with contextlib.suppress(ValueError):  # lists of different lengths
            array = np.asarray(values)
            if array.dtype.kind in "biuf" and array.shape == shape:
                return array.reshape(len(values), -1)
        flat = [null if item is None else item for each in self.lists(values) for item in each]
        require(all(isinstance(item, (Number, np.bool_)) for item in flat), "a number")
        array = np.array(flat).reshape(len(values), self.spec["length"] or 1)
        return array if array.dtype.kind in "biuf" else array.astype(np.float64)

    def numbers(self, columns: Any, inputs: Any, array: Any = None) -> None:
        """Encode a number, a boolean, a vector of numbers or an embedding."""
        array = self.to_numbers(columns[self.column], np.nan) if array is None else array
        with np.errstate(over="ignore"):  # integers are rounded twice, as in training
            array = (array if array.dtype.kind == "f" else array.astype(np.float64)).astype(np.float32)
        spec, missing, width = self.spec, ~np.isfinite(array), array.shape[1]
        require(not spec["boolean"] or (missing | (array == 0) | (array == 1)).all(), "true, false, 0, 1 or null")
        filled = np.where(missing, np.array(spec["missing"], np.float32), array)
        inputs[spec["input"]][:, spec["begin"] : spec["begin"] + width] = filled
        if spec["indicator"] is not None:
            inputs["binary"][:, spec["indicator"] : spec["indicator"] + width] = missing

    def vector(self, columns: Any, inputs: Any) -> None:
        """Copy the `positions` of a vector of a schema, which has no nulls, rounded as in training."""
        spec, array = self.spec, self.to_numbers(columns[self.column], None)
        for position, number in spec["num_ids"]:
            ids = array[:, position]
            require(((ids >= 0) & (ids < number)).all(), f"an id from 0 to {number - 1} at position {position}")
        kept, dtype = array[:, spec["positions"]], spec["rounded_to"]
        with np.errstate(all="ignore"):
            rounded = kept.astype(np.float32 if dtype == "bfloat16" else dtype)
        if dtype == "bfloat16":
            bits = rounded.view(np.uint32)
            rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
        if dtype in ("int64", "uint8", "float16"):
            good = np.isfinite(rounded) | ~np.isfinite(kept) if dtype == "float16" else rounded == kept
            require(good.all(), f"numbers that fit {dtype}")
        inputs[spec["input"]][:] = rounded

    def categories(self, columns: Any, inputs: Any) -> None:
        """Encode a value, or the last `max_length` values of a list, as ids: rows of an embedding table."""
        begin, width = self.spec["begin"], self.spec["max_length"] * self.spec["num_hashes"]
        ids = [[row for item in items for row in self.rows_of(item)] for items in self.lists(columns[self.column])]
        padded = [each[-width:] + [NO_ROW] * (width - len(each)) for each in ids]
        inputs["ids"][:, begin : begin + width] = np.array(padded, np.int32).reshape(-1, width)

    def find_rows(self, value: Any) -> tuple[int, ...]:
        """Return the rows of a value, one per hash."""
        spec, is_text = self.spec, isinstance(value, str)
        if is_missing(value):
            return (MISSING_ROW, NO_ROW)[: spec["num_hashes"]]
        good = is_text or isinstance(value, (Number, np.bool_))
        good = good and spec["values"] in (None, "strings" if is_text else "integers")
        require(good, spec["values"] or "strings or integers")
        if spec["hash_buckets"] is None:
            return (self.vocabulary.get(value, UNKNOWN_ROW),)
        if not is_text:
            value = value.item() if isinstance(value, np.generic) else value
            require(-(2**63) <= value < 2**63 and value == int(value), "strings, or integers from -2^63 to 2^63 - 1")
        data = value.encode() if is_text else int(value).to_bytes(8, "little", signed=True)
        hashes = [xxh64(data, 42)]
        hashes += [xxh64(data, hashes[0])] * (spec["num_hashes"] - 1)
        return tuple(FIRST_VALUE_ROW + (each - (each >> 63 << 64)) % spec["hash_buckets"] for each in hashes)

    def timestamp(self, columns: Any, inputs: Any) -> None:
        """Encode the local hour and day of the week as ids, and the time to another column, the age, as a number."""
        zone, (seconds, fraction, missing) = zoneinfo.ZoneInfo(self.spec["time_zone"]), self.to_times(columns)
        moments = [EPOCH + timedelta(seconds=each) for each in seconds.clip(BEGIN + DAY, END - 1 - DAY).tolist()]
        offsets = [round((each.astimezone(zone).utcoffset() or timedelta()).total_seconds()) for each in moments]
        local = seconds + np.array(offsets, np.int64)
        for part, value in (("hour_of_day", local % DAY // 3_600), ("day_of_week", (local // DAY + 3) % 7)):
            if self.spec[part] is not None:
                inputs["ids"][:, self.spec[part]] = np.where(missing, MISSING_ROW, value + FIRST_VALUE_ROW)
        if self.age is not None:
            end, end_fraction, end_missing = self.age.to_times(columns)
            ages = ((end - seconds) + (end_fraction - fraction)) / self.age.spec["seconds"]
            self.age.numbers(columns, inputs, np.where(missing | end_missing, np.nan, ages)[:, None])

    def to_times(self, columns: Any) -> tuple[Any, Any, Any]:
        """Return seconds since 1970 in UTC, rounded down, the fractions after them, and what is missing."""
        values, unit = columns[self.column], self.spec["unit"]
        if unit is not None:
            array = self.to_numbers(values, NULL_TIME)[:, 0]
        else:
            if not (isinstance(values, np.ndarray) and values.dtype.kind == "M"):
                values = np.array([to_utc(value) for value in values], "datetime64[us]")
            unit = np.datetime_data(values.dtype)[0]
            array = (values if unit in UNITS else values.astype("datetime64[s]")).astype(np.int64)
        scale, per_second = UNITS.get(unit, (1, 1))
        present = (array != NULL_TIME) & (array >= BEGIN * per_second // scale) & (array < END * per_second // scale)
        array = np.where(present, array, 0).astype(np.float64 if array.dtype.kind == "f" else np.int64) * scale
        if array.dtype.kind == "f":
            array, per_second = array / per_second, 1
        seconds, rest = np.divmod(array, per_second)
        return seconds.astype(np.int64), rest / per_second, ~present


def require(good: bool, expected: str) -> None:
    if not good:
        raise ValueError(f"expected {expected}")


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, (float, np.floating, date, np.datetime64)) and bool(value != value))


def to_utc(value: Any) -> Any:
    """Return a date or a point in time without a time zone, which is UTC, or None."""
    value = datetime.fromisoformat(value) if isinstance(value, str) else value
    require(is_missing(value) or isinstance(value, (date, np.datetime64)), "a timestamp or a date")
    zoned = getattr(value, "tzinfo", None) is not None
    return None if is_missing(value) else value.astimezone(UTC).replace(tzinfo=None) if zoned else value


def python_xxh64(data: bytes, seed: int) -> int:
    """Return the XXH64 of bytes (github.com/Cyan4973/xxHash, doc/xxhash_spec.md)."""

    def rotated(number: int, bits: int) -> int:
        return (number & MASK) << bits | (number & MASK) >> (64 - bits)

    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) - 7, 8)]
    hashed, striped, rest = seed + P5, len(data) // 32 * 4, data[len(data) // 8 * 8 :]
    if striped:
        lanes = [seed + P1 + P2, seed + P2, seed, seed - P1]
        for index, word in enumerate(words[:striped]):
            lanes[index % 4] = rotated(lanes[index % 4] + word * P2, 31) * P1
        hashed = sum(rotated(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
        for lane in lanes:
            hashed = (hashed ^ rotated(lane * P2, 31) * P1) * P1 + P4
    hashed += len(data)
    for word in words[striped:]:
        hashed = rotated(hashed ^ rotated(word * P2, 31) * P1, 27) * P1 + P4
    if len(rest) >= 4:
        hashed = rotated(hashed ^ int.from_bytes(rest[:4], "little") * P1, 23) * P2 + P3
    for byte in rest[len(rest) // 4 * 4 :]:
        hashed = rotated(hashed ^ byte * P5, 11) * P1
    for shift, prime in ((33, P2), (29, P3), (32, 1)):
        hashed = ((hashed & MASK) ^ (hashed & MASK) >> shift) * prime
    return hashed & MASK


xxh64: Any = python_xxh64
with contextlib.suppress(ImportError):
    from xxhash import xxh64_intdigest as xxh64

if __name__ == "__main__":
    ranker = Ranker()
    while lines := list(itertools.islice(sys.stdin, 1024)):
        rows = [json.loads(line) for line in lines]
        outputs = ranker({name: [row[name] for row in rows] for name in ranker.columns})
        for row in range(len(rows)):
            sys.stdout.write(json.dumps({name: values[row].tolist() for name, values in outputs.items()}) + "\n")
