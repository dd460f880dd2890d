"""Two encoders act as one; test_parquet_encoder.py covers how a table uses an encoder."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.features.encoder import BINARY, IDS, FeatureEncoder
from common.features.group_encoder import GROUPS, GroupEncoder
from common.reader.encoder import CombinedEncoder, Encoder
from common.reader.files import DataError, matching_files
from common.reader.parquet import ParquetTable
from tests.support.encoded_rows import parse_features


def test_encoders_that_share_a_column_act_as_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": ["a", "b", "a"], "vip": [True, False, True]}), tmp_path / "data.parquet")
    features: dict[str, dict[str, Any]] = {
        "vip": {"kind": "boolean"},
        "user": {"kind": "category", "hash_buckets": 9},
    }
    encoders: list[Encoder] = [FeatureEncoder.open(parse_features(features)), GroupEncoder("user", "metrics.group_by")]
    both = CombinedEncoder(encoders)
    assert both.bytes_per_row == sum(encoder.bytes_per_row for encoder in encoders)
    assert sorted(both.columns) == ["user", "vip"]
    files = matching_files(str(tmp_path / "data.parquet"))
    decoded = ParquetTable(files, {}, encoder=both).decode(0)
    apart = [ParquetTable(files, {}, encoder=encoder).decode(0) for encoder in encoders]
    for key, encoder in ((BINARY, apart[0]), (IDS, apart[0]), (GROUPS, apart[1])):
        assert decoded[key].tolist() == encoder[key].tolist()
        assert len(decoded[key]) == 3


def test_an_error_of_any_encoder_is_an_error_of_both(tmp_path: Path) -> None:
    pq.write_table(pa.table({"vip": [True]}), tmp_path / "data.parquet")
    encoder = FeatureEncoder.open(parse_features({"vip": {"kind": "boolean"}}))
    with pytest.raises(DataError, match=r"no column 'user'.*metrics\.group_by"):
        ParquetTable(
            matching_files(str(tmp_path / "data.parquet")),
            {},
            encoder=CombinedEncoder([encoder, GroupEncoder("user", "metrics.group_by")]),
        )
