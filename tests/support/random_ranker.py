"""Makes rankers with random weights, as if they had been loaded from a checkpoint.

Their tasks are LABEL and "other", or one of these.
"""

import json
from pathlib import Path
from typing import Any

import torch

from common.features.encoder import FeatureEncoder
from common.features.statistics import complete_features
from common.reader.files import matching_files
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.dataset import layout_widths
from projects.home.recap.data.schema import feature_widths, read_features
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.saved import SavedRanker
from tests.support.feature_table import FEATURES, LABEL, config, write_data

WIDTHS = {"continuous": 6, "binary": 3, "discrete": 2, "user_embedding": 4, "author_embedding": 5}
ALL_FEATURES: dict[str, dict[str, Any]] = FEATURES | {"b.c/d": {"kind": "embedding", "column": "text"}}


def with_schema(tmp_path: Path, values: dict[str, Any]) -> SavedRanker:
    """Return a ranker with the features of a schema and no data. `values` is the configuration of the model."""
    entries = [{"feature_name": name, "length": width} for name, width in WIDTHS.items()]
    (tmp_path / "schema.json").write_text(json.dumps({"schema": entries}))
    base = config(tmp_path / "no data", tmp_path / "run")
    base |= {"features": None, "model": values}
    for data in (base["train_data"], base["validation_data"]["validation"]):
        data |= {"seg_dense_schema": {"schema_path": str(tmp_path / "schema.json")}, "tasks": {LABEL: {}, "other": {}}}
    return _saved_ranker(base)


def with_features(
    tmp_path: Path, values: dict[str, Any], features: dict[str, dict[str, Any]] = ALL_FEATURES
) -> SavedRanker:
    """Return a ranker with configured features, and write its data. `values` is the configuration of the model."""
    base = config(write_data(tmp_path / "data"), tmp_path / "run", features)
    base["model"] = values
    for data in (base["train_data"], base["validation_data"]["validation"]):
        data["tasks"] = {LABEL: {}, "other": {}}
    return _saved_ranker(base)


def _saved_ranker(values: dict[str, Any]) -> SavedRanker:
    """Return a ranker with random weights, whose batch norms have random statistics."""
    read = RecapConfig.model_validate_json(json.dumps(values))
    encoder, features = None, {}
    if read.features is not None:
        complete = complete_features(read.features, matching_files(str(read.train_data.inputs)))
        read = read.model_copy(update={"features": complete})
        encoder = FeatureEncoder.open(complete)
        widths = layout_widths(encoder.layout)
    else:
        features = read_features(read.train_data, "train_data")
        widths = feature_widths(features)
    torch.manual_seed(0)
    rates = {LABEL: (0.8, 0.01), "other": (1.0, 1.0)}
    ranker = HeavyRanker(read.model, widths, rates, None if encoder is None else encoder.layout)
    for module in ranker.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    ranker.eval().requires_grad_(False)
    return SavedRanker(Path("checkpoints/1"), 1, "digest", read, ranker, features, encoder)
