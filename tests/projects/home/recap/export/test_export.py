"""Checks an export of a small run with features of all kinds: each file against the ranker of the checkpoint."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from common.reader.files import matching_files
from core.checkpoints.chosen import choose_checkpoint
from projects.home.recap.export.export import export
from projects.home.recap.main import main
from projects.home.recap.saved import load_saved_ranker
from tests.support.export import forget_precision
from tests.support.feature_table import COUNTRIES, LABEL, config, write_config, write_data


class Run:
    """A run and its export, without AOTInductor."""

    def __init__(self, directory: Path) -> None:
        self.data = write_data(directory / "data")
        values = config(self.data, directory / "run")
        values["training"]["ema_decay"] = 0.5
        values["model"]["score_weights"] = {LABEL: 3.0}
        arguments = ["main", "--config", str(write_config(directory / "config.yaml", values))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", arguments)
            assert main() == 0
        forget_precision()
        self.checkpoint = choose_checkpoint(directory / "run", best=False)
        self.exported = export(self.checkpoint, directory / "export", compiles=False)

    @property
    def signature(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.exported.out / "signature.json").read_text())
        return loaded


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("export"))


def test_the_files_score_rows_as_the_ranker_with_averaged_weights_does(run: Run) -> None:
    saved = load_saved_ranker(run.checkpoint)
    table = saved.open_table(matching_files(str(run.data / "validation.parquet")))
    session = onnxruntime.InferenceSession(run.exported.out / "model.onnx")
    program = torch.export.load(run.exported.out / "model.pt2").module()
    for rows in (1, 2, 17):
        arguments = saved.inputs(table.decode(0), 0, rows, rows)
        expected = saved.ranker(**arguments)
        tensors = {
            "continuous": arguments["continuous"],
            "binary": arguments["binary"].float(),
            "embeddings.text": arguments["embeddings"]["text"],
            "ids": arguments["ids"],
        }
        assert [each["name"] for each in run.signature["inputs"]] == list(tensors)
        values = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
        for name, value, shape in zip(expected, values, session.get_outputs(), strict=True):
            assert (shape.name, shape.shape[0]) == (name, "batch")
            np.testing.assert_allclose(value, expected[name].numpy(), rtol=0, atol=1e-6)
        for name, tensor in program(tensors).items():
            torch.testing.assert_close(tensor, expected[name])


def test_signature_describes_inputs_outputs_features_and_source(run: Run) -> None:
    found = run.signature
    assert {(each["name"], each["dtype"], *each["shape"]) for each in found["inputs"]} == {
        ("continuous", "float32", "batch", 5),
        ("binary", "float32", "batch", 5),
        ("embeddings.text", "float32", "batch", 4),
        ("ids", "int32", "batch", 11),
    }
    assert ("score", "float64", ["batch"]) in [tuple(each.values()) for each in found["outputs"]]
    assert (found["tasks"], found["score_weights"], found["aotinductor"]) == ([LABEL], {LABEL: 3.0}, None)
    assert found["checkpoint"]["step"] == 12
    assert found["features"]["age"]["missing"] is not None
    vocabulary = found["features"]["country"]["vocabulary"]
    assert json.loads((run.exported.out / vocabulary).read_text()) == COUNTRIES
    assert found["vocabularies"][vocabulary]["num_values"] == len(COUNTRIES)
