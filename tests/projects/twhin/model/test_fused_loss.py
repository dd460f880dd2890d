from typing import Any

import pytest
import torch

from projects.twhin.model import fused_loss as module
from projects.twhin.model.fused_loss import fused_loss
from projects.twhin.model.losses import Loss, edge_losses
from tests.support.toy_twhin import LOSSES, NoHostSync

MARGIN = 0.7


def inputs(edges: int, candidates: int, dim: int = 5, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Any:
    """Return queries, own, candidates, own_ids, candidate_ids and weights. Ids often match, and weights can be 0."""
    generator = torch.Generator().manual_seed(edges + 1000 * candidates)

    def vectors(rows: int) -> torch.Tensor:
        drawn = torch.randn(rows, dim, generator=generator, dtype=torch.float64) * scale
        return drawn.to(dtype).requires_grad_()

    own_ids, candidate_ids = (torch.randint(6, (rows,), generator=generator) for rows in (edges, candidates))
    weights = torch.rand(edges, generator=generator, dtype=torch.float64).sub(0.2).clamp_min(0)
    return vectors(edges), vectors(edges), vectors(candidates), own_ids, candidate_ids, weights.to(dtype)


def eager(loss: Loss, *arguments: torch.Tensor) -> torch.Tensor:
    queries, own, candidates, own_ids, candidate_ids, weights = arguments
    masked = own_ids[:, None] == candidate_ids
    losses = edge_losses(loss, MARGIN, (queries * own).sum(1), queries @ candidates.T, masked)
    return (losses * weights).sum()


def with_gradients(total: torch.Tensor, leaves: Any) -> list[torch.Tensor]:
    return [total.detach(), *torch.autograd.grad(3 * total, leaves)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("edges", "candidates"), [(1, 1), (7, 3), (8, 13), (9, 30), (0, 4), (5, 0), (0, 0)])
def test_equals_the_formula_and_its_gradients(loss: Loss, edges: int, candidates: int, monkeypatch: pytest.MonkeyPatch):
    """The cases have full blocks, partial blocks, a single block, and none."""
    monkeypatch.setattr(module, "_BLOCK_SCORES", 36)
    arguments = inputs(edges, candidates)
    expected = with_gradients(eager(loss, *arguments), arguments[:3])
    found = with_gradients(fused_loss(loss, MARGIN, *arguments), arguments[:3])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_equal_finite_differences(loss: Loss, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_BLOCK_SCORES", 36)
    queries, own, candidates, *rest = inputs(7, 9)
    assert torch.autograd.gradcheck(
        lambda *leaves: fused_loss(loss, MARGIN, *leaves, *rest), (queries, own, candidates)
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [1, 30])
def test_an_asynchronous_device_is_not_waited_for(loss: Loss, scale: float, monkeypatch: pytest.MonkeyPatch):
    """Runs the GPU's path on the CPU and checks that no operation needs a value on the host."""
    monkeypatch.setattr(module, "_is_asynchronous", lambda _: True)
    arguments = inputs(20, 30, scale=scale)
    expected = with_gradients(eager(loss, *arguments), arguments[:3])
    with NoHostSync():  # type: ignore[no-untyped-call]
        found = with_gradients(fused_loss(loss, MARGIN, *arguments), arguments[:3])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32_with_the_default_block_size(loss: Loss):
    arguments = inputs(700, 90, scale=0.7, dtype=torch.float32)
    expected = with_gradients(
        eager(loss, *(x.double() if x.is_floating_point() else x for x in arguments)), arguments[:3]
    )
    found = with_gradients(fused_loss(loss, MARGIN, *arguments), arguments[:3])
    torch.testing.assert_close(found, expected, check_dtype=False, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_scores_whose_exponents_overflow_equal_the_formula(loss: Loss):
    """Scores are in the thousands, but exp overflows above 88 in float32."""
    arguments = inputs(20, 30, scale=30, dtype=torch.float32)
    expected = with_gradients(
        eager(loss, *(x.double() if x.is_floating_point() else x for x in arguments)), arguments[:3]
    )
    found = with_gradients(fused_loss(loss, MARGIN, *arguments), arguments[:3])
    assert expected[0] > 1000
    torch.testing.assert_close(found, expected, check_dtype=False, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(loss: Loss, dtype: torch.dtype):
    """Loss and gradients are float32 and differ only by the products' rounding, even with weights divided by a large
    batch size."""
    *arguments, weights = inputs(300, 40, dtype=torch.float32)
    arguments.append(weights / 1e5)
    expected = with_gradients(eager(loss, *arguments), arguments[:3])
    with torch.autocast("cpu", dtype=dtype):
        total = fused_loss(loss, MARGIN, *arguments)
    found = with_gradients(total, arguments[:3])
    assert {x.dtype for x in found} == {torch.float32}
    for actual, exact in zip(found, expected, strict=True):
        assert (actual - exact).norm() < 0.05 * exact.norm()


def test_a_nan_query_gives_a_nan_loss():
    arguments = inputs(4, 5)
    with torch.no_grad():
        arguments[0][0, 0] = torch.nan
    assert fused_loss("softmax", MARGIN, *arguments).isnan()


def test_a_second_backward_gives_the_same_gradient():
    arguments = inputs(4, 5)
    total = fused_loss("softmax", MARGIN, *arguments)
    first, second = (torch.autograd.grad(total, arguments[0], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
