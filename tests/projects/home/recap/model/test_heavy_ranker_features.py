"""The Heavy Ranker with configured features: its input, its modules, autocast and export."""

from typing import Any

import numpy as np
import pytest
import torch

from common.features.layout import EmbeddingTable, FeatureLayout, Lookup
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.config import ModelConfig
from projects.home.recap.model.features import log1p_abs
from projects.home.recap.model.heavy_ranker import HeavyRanker
from tests.support.export import forget_precision

TABLE = EmbeddingTable("item", 9, 4, np.zeros(9, np.float32))
LAYOUT = FeatureLayout(
    ("age", "income", "visits"),
    ((0.0, 1.0, 4.0), None, (-1.0, 1.0)),
    ("vip",),
    (Lookup("item", "item", 0), Lookup("last items", "item", 1, length=3, pooling="mean")),
    (TABLE,),
    {"text": 5},
)


def build(layout: FeatureLayout = LAYOUT, **config: Any) -> HeavyRanker:
    torch.manual_seed(0)
    values = {"tasks": {"a": {"mlp_config": {"layer_sizes": [1]}}}, "featurization_config": {"log1p_abs_config": {}}}
    widths = FeatureWidths(len(layout.continuous), len(layout.binary), layout.embeddings)
    return HeavyRanker(ModelConfig.model_validate(values | config), widths, {"a": (1.0, 1.0)}, layout).eval()


def inputs(rows: int = 6, layout: FeatureLayout = LAYOUT) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "continuous": torch.randn(rows, len(layout.continuous), generator=generator),
        "binary": torch.randint(2, (rows, len(layout.binary)), generator=generator, dtype=torch.uint8),
        "ids": torch.randint(-1, 9, (rows, layout.num_ids), generator=generator, dtype=torch.int32).clamp(
            min=torch.tensor([0, -1, -1, -1], dtype=torch.int32)[: layout.num_ids]
        ),
        "embeddings": {
            name: torch.randn(rows, length, generator=generator) for name, length in layout.embeddings.items()
        },
    }


def test_the_input_is_the_plain_numbers_the_buckets_the_embeddings_and_the_tables() -> None:
    ranker, batch = build(), inputs()
    linear: Any = next(module for module in ranker.towers.modules() if isinstance(module, torch.nn.Linear))
    seen: list[torch.Tensor] = []
    linear.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    ranker(**batch)
    age, income, visits = batch["continuous"].T
    assert ranker.feature_tables is not None
    [item] = ranker.feature_tables.parameters()
    lists = batch["ids"][:, 1:].tolist()
    expected = torch.stack(
        [
            log1p_abs(income),
            batch["binary"][:, 0].float(),
            age.clamp(-10, 1),
            ((age - 1) / 3).clamp(0, 10),
            ((visits + 1) / 2).clamp(-10, 10),
        ],
        dim=1,
    )
    means = [item[[row for row in rows if row >= 0]].sum(0) / max(1, sum(row >= 0 for row in rows)) for rows in lists]
    text = torch.nn.functional.layer_norm(batch["embeddings"]["text"], (5,))
    expected = torch.cat([expected, text, item[batch["ids"][:, 0].long()], torch.stack(means)], dim=1)
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(
    "layout",
    [
        FeatureLayout((), (), (), (Lookup("item", "item", 0),), (TABLE,), {}),
        FeatureLayout(("age",), ((0.0, 1.0),), (), (), (), {}),
        FeatureLayout(("age",), (None,), (), (), (), {}),
        FeatureLayout((), (), ("vip",), (), (), {}),
        FeatureLayout((), (), (), (), (), {"text": 5}),
    ],
    ids=["a table", "buckets", "a number", "a boolean", "an embedding"],
)
def test_a_part_alone_is_enough_with_both_norms(layout: FeatureLayout) -> None:
    norms: dict[str, Any] = {"batch_norm_config": {"affine": True, "momentum": 0.1}, "layer_norm_config": {}}
    ranker = build(layout, featurization_config={"double_norm_log_config": norms}).train()
    loss = ranker(**inputs(layout=layout))["logits"].square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.numel() for p in ranker.parameters())


def test_non_finite_numbers_count_as_0() -> None:
    ranker, batch = build(), inputs(4)
    expected = ranker(**batch | {"continuous": torch.zeros(4, 3)})["logits"]
    batch["continuous"] = torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [0.0]]).expand(-1, 3)
    torch.testing.assert_close(ranker(**batch)["logits"], expected)


def test_runs_under_autocast_to_bfloat16() -> None:
    ranker, batch = build().train(), inputs(64)
    with torch.autocast("cpu", torch.bfloat16):
        logits = ranker(**batch)["logits"]
    logits.sum().backward()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, ranker(**batch)["logits"], rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in ranker.parameters())


def test_can_be_exported() -> None:
    forget_precision()
    ranker = build()
    batch = torch.export.Dim("batch", min=2)
    shapes: dict[str, Any] = {name: {0: batch} for name in ("continuous", "binary", "ids")}
    shapes["embeddings"] = {"text": {0: batch}}
    exported = torch.export.export(ranker, (), inputs(), dynamic_shapes=shapes)
    other = inputs(9)
    torch.testing.assert_close(exported.module()(**other), ranker(**other))
