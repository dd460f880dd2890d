"""The bits of predictions do not depend on the number of threads."""

import json
import sys
from collections.abc import Iterator

import pytest
import torch

from projects.home.recap.main import main as train
from projects.home.recap.predict.__main__ import main
from tests.support.runs import small_run


@pytest.fixture(autouse=True)
def keep_number_of_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_any_number_of_threads_writes_the_same_bytes(recap_data, tmp_path):
    # In layers of these widths, bits depend on the number of threads that share a product.
    tower = "model.tasks[recap.engagement.is_favorited].mlp_config.layer_sizes=[65,33,1]"
    widths = (tower, "model.backbone.mask_net_config.mlp.layer_sizes=[130]")
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main", *small_run(recap_data, tmp_path / "run", *widths)])
        assert train() == 0
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = tmp_path / f"out-{threads}"
            words = ["--checkpoint", tmp_path / "run", "--inputs", recap_data / "train", "--out", out]
            patch.setattr(sys, "argv", ["predict", *map(str, words)])
            assert main() == 0
            written.append({path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert json.loads(written[0]["manifest.json"])["rows"] == 2000
    assert written[0] == written[1]
