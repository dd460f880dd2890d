import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from core.losses import multi_task_cross_entropy

ROWS, TASKS = 40, 3


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(ROWS, TASKS, generator=generator)
    labels = (torch.rand(ROWS, TASKS, generator=generator) < 0.3).float()
    weights = 10 * torch.rand(ROWS, TASKS, generator=generator)
    weights[::7] = 0
    return logits, labels, weights, torch.tensor([1.0, 2.5, 0.1])


def truth(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, pos_weights: torch.Tensor) -> float:
    """Return the loss by its definition in float64: the sum over rows / rows, then the mean over tasks."""
    p = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))
    y, w = labels.numpy().astype(np.float64), weights.numpy().astype(np.float64)
    losses = -w * (pos_weights.numpy().astype(np.float64) * y * np.log(p) + (1 - y) * np.log(1 - p))
    return float(np.mean([losses[:, task].sum() / len(losses) for task in range(losses.shape[1])]))


def test_is_the_mean_over_tasks_of_the_weighted_loss_per_example() -> None:
    assert multi_task_cross_entropy(*example()).item() == pytest.approx(truth(*example()), rel=1e-6)


def test_equals_log_loss_times_the_mean_weight() -> None:
    logits, labels, weights, _ = example()
    found = multi_task_cross_entropy(logits[:, :1], labels[:, :1], weights[:, :1], torch.ones(1)).item()
    expected = log_loss(labels[:, 0], torch.sigmoid(logits[:, 0].double()), sample_weight=weights[:, 0])
    assert found == pytest.approx(expected * weights[:, 0].double().mean().item(), rel=1e-5)


@pytest.mark.parametrize("parts", [2, 4, 5])
def test_is_the_mean_over_equal_parts_of_a_batch(parts: int) -> None:
    logits, labels, weights, pos_weights = example()
    size = ROWS // parts
    losses = []
    for i in range(parts):
        rows = slice(i * size, (i + 1) * size)
        losses.append(multi_task_cross_entropy(logits[rows], labels[rows], weights[rows], pos_weights))
    assert torch.stack(losses).double().mean().item() == pytest.approx(truth(*example()), rel=1e-6)


def test_does_not_change_the_tensors_of_the_caller() -> None:
    tensors = example()
    copies = [tensor.clone() for tensor in tensors]
    tensors[0].requires_grad_()
    loss = multi_task_cross_entropy(*tensors)
    value = loss.item()
    torch.autograd.backward(loss)
    assert loss.item() == value
    assert all(torch.equal(tensor.detach(), copy) for tensor, copy in zip(tensors, copies, strict=True))


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, labels, weights, pos_weights = example()
    half = logits.to(torch.bfloat16)
    loss = multi_task_cross_entropy(half, labels, weights, pos_weights)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(truth(half.float(), labels, weights, pos_weights), rel=1e-6)


def test_is_finite_for_a_certain_and_wrong_prediction() -> None:
    logits = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    loss = multi_task_cross_entropy(logits, torch.tensor([[0.0], [1.0]]), torch.ones(2, 1), torch.ones(1))
    torch.autograd.backward(loss)
    assert loss.item() == 200.0
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [0.5, -0.5]


def test_a_weight_of_zero_gives_no_gradient() -> None:
    logits, labels, weights, pos_weights = example()
    logits.requires_grad_()
    torch.autograd.backward(multi_task_cross_entropy(logits, labels, weights, pos_weights))
    assert logits.grad is not None
    assert torch.equal(logits.grad[weights == 0], torch.zeros(int((weights == 0).sum())))
    assert bool((logits.grad[weights > 0] != 0).all())
