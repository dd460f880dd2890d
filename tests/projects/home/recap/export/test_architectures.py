"""Exports a ranker of every architecture and option, with random weights, and compares it with the ranker itself."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from projects.home.recap.export.export import write_export
from projects.home.recap.export.flat_ranker import ranker_inputs
from projects.home.recap.export.rows import choose_rows, read_rows
from projects.home.recap.saved import SavedRanker
from tests.support.export import forget_precision
from tests.support.feature_table import FEATURES, LABEL
from tests.support.random_ranker import with_features, with_schema

pytestmark = pytest.mark.faults  # each takes some seconds

MLP: dict[str, Any] = {"layer_sizes": [8, 1], "batch_norm": {"affine": True, "momentum": 0.1}}
TOWER: dict[str, Any] = {"mlp_config": MLP, "affine_map": {"scale": 1.5, "bias": -2.0}}
LAST: dict[str, Any] = {"layer_sizes": [6], "final_layer_activation": True}
BLOCK = {"output_size": 5, "aggregation_size": 4, "input_layer_norm": True}
OTHER_BLOCK = {"output_size": 7, "reduction_factor": 0.5, "input_layer_norm": False}
BACKBONES: dict[str, dict[str, Any]] = {
    "parallel MaskNet": {"mask_net_config": {"mask_blocks": [BLOCK, OTHER_BLOCK], "use_parallel": True, "mlp": LAST}},
    "serial MaskNet": {"mask_net_config": {"mask_blocks": [BLOCK, OTHER_BLOCK], "use_parallel": False}},
    "parallel DCN": {"dcn_config": {"poly_degree": 3, "parallel_mlp": LAST, "output_mlp": LAST}},
    "serial DCN of low rank": {
        "dcn_config": {"poly_degree": 2, "projection_dim": 3, "parallel_mlp": LAST, "use_parallel": False}
    },
    "DLRM": {"dlrm_config": {"bottom_mlp": {"layer_sizes": [4]}, "top_mlp": LAST}},
    "MLP with dropout": {"mlp_config": {**LAST, "dropout": {"rate": 0.5}}},
}
NORMS = {"batch_norm_config": {"affine": True, "momentum": 0.1}, "layer_norm_config": {"epsilon": 0.0}}
LOG: dict[str, Any] = {"log1p_abs_config": {}}
TABLES = [
    {"name": "country", "num_embeddings": 9, "embedding_dim": 3, "index": 1},
    {"name": "kind", "num_embeddings": 4, "embedding_dim": 2, "index": 0},
]


def model(backbone: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    shared = {} if backbone is None else {"multi_task_type": "share_all", "backbone": backbone}
    return {"tasks": {LABEL: TOWER, "other": TOWER}, "featurization_config": LOG} | shared | values


def check(saved: SavedRanker, out: Path) -> dict[str, Any]:
    forget_precision()
    out.mkdir()
    compared, _ = write_export(saved, out, compiles=False)
    inputs = ranker_inputs(saved)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    program = torch.export.load(out / "model.pt2").module()
    rows, _ = choose_rows(saved, inputs, read_rows(saved, inputs))
    for size in (1, 2, 17):
        tensors = {name: values[-size:] for name, values in rows.inputs.items()}
        nested = {name: values for name, values in tensors.items() if not name.startswith("embeddings.")}
        vectors = {name[11:]: values for name, values in tensors.items() if name.startswith("embeddings.")}
        expected = saved.ranker(
            **{"binary": torch.zeros(size, 0), "continuous": torch.zeros(size, 0)} | nested, embeddings=vectors
        )
        values = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
        for (name, other), value in zip(expected.items(), values, strict=True):
            np.testing.assert_allclose(value, other.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)
            torch.testing.assert_close(program(tensors)[name], other, rtol=1e-5, atol=1e-5)
    return compared


def cases(names: Iterable[str], with_features_too: Iterable[str]) -> list[tuple[Any, str]]:
    return [*((with_schema, name) for name in names), *((with_features, name) for name in with_features_too)]


# A backbone sees either kind of features as one tensor, of which only a DLRM knows the embeddings.
@pytest.mark.parametrize(("build", "name"), cases(BACKBONES, ["parallel MaskNet", "DLRM"]))
def test_backbones(tmp_path: Path, build: Any, name: str) -> None:
    compared = check(build(tmp_path, model(BACKBONES[name])), tmp_path / "out")
    assert ("generated" in compared["data"]) == (build is with_schema)


DLRM = BACKBONES["DLRM"]
OPTIONS: dict[str, dict[str, Any]] = {
    "share_none": model(),
    "share_partial": model(DLRM, multi_task_type="share_partial"),
    "towers of all architectures": model(
        tasks={
            LABEL: {"mask_net_config": {"mask_blocks": [BLOCK], "use_parallel": False, "mlp": {"layer_sizes": [1]}}},
            "other": {"dcn_config": {"poly_degree": 2, "output_mlp": {"layer_sizes": [1]}}},
        }
    ),
    "score weights": model(DLRM, score_weights={LABEL: 3.0, "other": -1000.0}),
    "clipped logarithm": model(featurization_config={"clip_log1p_abs_config": {"clip_magnitude": 2.0}}),
    "two norms": model(DLRM, featurization_config={"double_norm_log_config": NORMS}),
    "no binary features": model(featurization_config=LOG | {"feature_names_to_concat": []}),
}


@pytest.mark.parametrize(("build", "name"), cases(OPTIONS, ["two norms", "no binary features"]))
def test_options(tmp_path: Path, build: Any, name: str) -> None:
    saved = build(tmp_path, OPTIONS[name])
    check(saved, tmp_path / "out")
    names = [each.name for each in ranker_inputs(saved)]
    assert ("binary" in names) == (name != "no binary features")
    assert ("ids" in names) == (build is with_features)
    assert "discrete" not in names


def test_small_embeddings(tmp_path: Path) -> None:
    saved = with_schema(tmp_path, model(small_embeddings={"tables": TABLES}))
    check(saved, tmp_path / "out")
    rows, _ = choose_rows(saved, ranker_inputs(saved), None)
    assert rows.inputs["discrete"][list(rows.names).index("the last id of every table")].tolist() == [3, 8]


def test_z_scores(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(
        json.dumps(
            {
                "features": [str(position) for position in range(6)],
                "mean": [0.5] * 6,
                "std": [0.0, 1.0, 2.0, 3.0, 4.0, 1e-30],
            }
        )
    )
    z_score = {"analysis_path": str(path), "use_batch_norm": True}
    check(with_schema(tmp_path, model(featurization_config={"z_score_log_config": z_score})), tmp_path / "out")


@pytest.mark.parametrize(
    ("build", "position"),
    [(with_schema, {"position_feature_index": 1}), (with_features, {"position_feature": "items"})],
)
def test_position_debias(tmp_path: Path, build: Any, position: dict[str, Any]) -> None:
    saved = build(tmp_path, model(DLRM, position_debias_config=position | {"num_dims": 3}))
    check(saved, tmp_path / "out")
    assert "discrete" not in [each.name for each in ranker_inputs(saved)]


@pytest.mark.parametrize("name", ["income.gross", "age", "vip", "items", "tags", "text"])
def test_one_feature_is_enough(tmp_path: Path, name: str) -> None:
    feature = {key: value for key, value in FEATURES[name].items() if key != "indicator"}
    saved = with_features(tmp_path, model(), {name: feature})
    check(saved, tmp_path / "out")
    assert len(ranker_inputs(saved)) == 1
