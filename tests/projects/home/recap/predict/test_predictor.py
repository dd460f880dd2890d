"""Predictions do not depend on the number of threads, and are computed in the precision that the user chooses."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from common.reader.files import matching_files
from projects.home.recap.main import main as train
from projects.home.recap.predict.__main__ import main
from projects.home.recap.saved import load_saved_ranker
from tests.support.runs import small_run

FAVORITED = "recap.engagement.is_favorited"


@pytest.fixture(autouse=True)
def keep_number_of_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(program: Callable[[], int], *words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *map(str, words)])
        assert program() == 0


def test_any_number_of_threads_writes_the_same_bytes(recap_data: Path, tmp_path: Path) -> None:
    # In layers of these widths, bits depend on the number of threads that share a product.
    tower = f"model.tasks[{FAVORITED}].mlp_config.layer_sizes=[65,33,1]"
    widths = (tower, "model.backbone.mask_net_config.mlp.layer_sizes=[130]")
    run(train, *small_run(recap_data, tmp_path / "run", *widths))
    written = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out = tmp_path / f"out-{threads}"
        run(main, "--checkpoint", tmp_path / "run", "--inputs", recap_data / "train", "--out", out)
        written.append({path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert json.loads(written[0]["manifest.json"])["rows"] == 2000
    assert written[0] == written[1]


def test_autocast_of_the_run_applies_unless_float32_is_chosen(recap_data: Path, tmp_path: Path) -> None:
    run(train, *small_run(recap_data, tmp_path / "run", "runtime.enable_amp=true", "runtime.amp_dtype=bfloat16"))
    inputs = recap_data / "validation"
    saved = load_saved_ranker(tmp_path / "run/checkpoints/12")
    group = saved.open_table(matching_files(str(inputs))).decode(0)
    expected = saved.ranker(**saved.inputs(group, 0, 500, 512))["probabilities"][:500, 0].numpy()
    assert next(iter(saved.config.model.tasks)) == FAVORITED
    errors = []
    for options in ([], ["--float32"]):
        out = tmp_path / f"out{len(options)}"
        run(main, "--checkpoint", tmp_path / "run", "--inputs", inputs, "--out", out, *options)
        found = pq.read_table(out / "predictions")[f"probability.{FAVORITED}"].to_numpy()
        errors.append(np.abs(found - expected).max())
    assert errors[0] > 1e-4
    assert errors[1] < 1e-6
