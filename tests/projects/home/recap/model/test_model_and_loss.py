import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from core.losses import multi_task_cross_entropy
from projects.home.recap.data.batch import RecapBatch
from projects.home.recap.model.config import StratifierConfig, TaskModel
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.model.model_and_loss import ModelAndLoss
from tests.projects.home.recap.model.test_heavy_ranker import build, inputs


def batch(tasks: tuple[str, ...], rows: int = 5) -> RecapBatch:
    """Return a batch with different labels per task: the i-th task in alphabetical order has i positive rows."""
    order = [sorted(tasks).index(task) for task in tasks]
    labels = torch.stack([(torch.arange(rows) < index).float() for index in order], dim=1)
    continuous, binary, *embeddings = inputs(rows)
    return RecapBatch(continuous, binary, labels, torch.ones_like(labels), tasks, None, *embeddings)


def tower(**settings: float) -> TaskModel:
    """Return a tower with settings of its loss."""
    return TaskModel.model_validate({"mlp_config": {"layer_sizes": [1]}, **settings})


def towers() -> list[TaskModel]:
    return [tower()] * 10


def closed_form(ranker: HeavyRanker, rows: RecapBatch, pos_weights: dict[str, float]) -> float:
    """Return the mean over tasks of the mean cross-entropy, in float64, matching labels by task name."""
    probabilities = ranker(*inputs())["probabilities"].double()
    losses = []
    for column, task in enumerate(ranker.tasks):
        p, y = probabilities[:, column], rows.labels[:, rows.tasks.index(task)].double()
        losses.append(-(pos_weights[task] * y * p.log() + (1 - y) * (1 - p).log()).mean())
    return float(torch.stack(losses).mean().detach())


def test_labels_are_matched_by_task_name() -> None:
    """The original matched labels by position. Here, 13 labels in another order serve 10 towers."""
    ranker = build()
    pos_weights = {task: 1.0 + 0.1 * index for index, task in enumerate(ranker.tasks)}
    model = ModelAndLoss(ranker, [tower(pos_weight=weight) for weight in pos_weights.values()]).eval()
    extra = ("recap.engagement.is_bookmarked", "recap.engagement.is_shared", "recap.engagement.is_tweet_detail_dwelled")
    shuffled = batch((extra[0], *reversed(ranker.tasks), *extra[1:]))
    loss, outputs = model(shuffled)
    assert loss.item() == pytest.approx(closed_form(ranker, shuffled, pos_weights), rel=1e-5)
    same_order = batch(ranker.tasks)
    wanted = {task: shuffled.labels[:, shuffled.tasks.index(task)] for task in ranker.tasks}
    assert torch.equal(outputs["labels"], torch.stack(list(wanted.values()), dim=1))
    assert not torch.equal(outputs["labels"], same_order.labels[:, list(reversed(range(10)))])


def test_the_gradient_of_a_tower_depends_only_on_its_own_label() -> None:
    ranker = build()
    model = ModelAndLoss(ranker, towers()).eval()
    rows = batch(tuple(reversed(ranker.tasks)))
    task = "recap.engagement.is_replied"
    flipped = rows.labels.clone()
    column = rows.tasks.index(task)
    flipped[:, column] = 1 - flipped[:, column]
    gradients = []
    for labels in (rows.labels, flipped):
        model.zero_grad()
        model(dataclasses.replace(rows, labels=labels))[0].backward()
        gradients.append({name: tower_gradient(tower) for name, tower in ranker.towers.items()})
    changed = {name for name in gradients[0] if not torch.equal(gradients[0][name], gradients[1][name])}
    assert changed == {"recap/engagement/is_replied"}


def test_loss_weights_and_label_smoothing_equal_the_closed_form() -> None:
    """Compares with equation 12 of arXiv 1512.00567 in float64, for two classes."""
    ranker = build()
    settings = [
        {"loss_weight": 0.5 + index, "label_smoothing": 0.09 * index, "pos_weight": 1.0 + 0.1 * index}
        for index in range(10)
    ]
    rows = batch(tuple(reversed(ranker.tasks)))
    loss, outputs = ModelAndLoss(ranker, [tower(**each) for each in settings]).eval()(rows)
    probabilities = outputs["probabilities"].detach().double().numpy()
    labels = rows.in_order_of(ranker.tasks).labels.double().numpy()
    losses = []
    for column, each in enumerate(settings):
        p = probabilities[:, column]
        y = (1 - each["label_smoothing"]) * labels[:, column] + each["label_smoothing"] / 2
        cross_entropy = -(each["pos_weight"] * y * np.log(p) + (1 - y) * np.log(1 - p))
        losses.append(each["loss_weight"] * cross_entropy.mean())
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert torch.equal(outputs["labels"], rows.in_order_of(ranker.tasks).labels), "metrics use the labels themselves"
    assert torch.equal(outputs["weights"], torch.ones(5, 10))


def test_without_loss_weights_and_smoothing_the_loss_is_unchanged_bit_for_bit() -> None:
    ranker = build()
    rows = batch(ranker.tasks)
    loss, outputs = ModelAndLoss(ranker, towers()).eval()(rows)
    ones = torch.ones(10)
    assert torch.equal(loss, multi_task_cross_entropy(outputs["logits"], rows.labels, rows.weights, ones))


def test_the_gradient_of_a_tower_is_proportional_to_its_loss_weight() -> None:
    ranker = build()
    gradients = []
    for weight in (1.0, 4.0):
        ranker.zero_grad()
        losses = [tower(loss_weight=weight if task.endswith("is_replied") else 1.0) for task in ranker.tasks]
        ModelAndLoss(ranker, losses).eval()(batch(ranker.tasks))[0].backward()
        gradients.append({name: tower_gradient(each) for name, each in ranker.towers.items()})
    for name, once in gradients[0].items():
        factor = 4 if name.endswith("is_replied") else 1
        torch.testing.assert_close(gradients[1][name], factor * once)


def tower_gradient(tower: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in tower.parameters() if p.grad is not None])


def test_a_task_without_labels_is_an_error() -> None:
    ranker = build()
    with pytest.raises(ValueError, match=r"no labels for recap.engagement.is_favorited"):
        ModelAndLoss(ranker, towers())(batch(ranker.tasks[1:]))


def test_strata_are_computed_only_in_evaluation() -> None:
    ranker = build()
    strata = [StratifierConfig(name=name, index=i, value=v) for name, i, v in (("a", 1, 7), ("b", 0, -2), ("c", 1, 9))]
    model = ModelAndLoss(ranker, towers(), strata)
    discrete = torch.tensor([[-2, 7], [0, 7], [-2, 3], [7, 7], [1, -2]])
    rows = dataclasses.replace(batch(ranker.tasks), discrete=discrete)
    assert "strata" not in model.train()(rows)[1]
    found = model.eval()(rows)[1]["strata"]
    assert found.dtype == torch.bool
    assert found.T.tolist() == [[True, True, False, True, False], [True, False, True, False, False], [False] * 5]
    assert "strata" not in ModelAndLoss(ranker, towers()).eval()(rows)[1]


def test_strata_compare_narrow_ids_without_overflow() -> None:
    ranker = build()
    strata = [StratifierConfig(name=str(value), index=0, value=value) for value in (44, 300)]
    rows = dataclasses.replace(batch(ranker.tasks, rows=2), discrete=torch.tensor([[44], [3]], dtype=torch.uint8))
    found = ModelAndLoss(ranker, towers(), strata).eval()(rows)[1]["strata"]
    assert found.tolist() == [[True, False], [False, False]], "300 wraps around to 44 in uint8"


def test_rows_of_weight_0_only_increase_the_number_of_examples() -> None:
    ranker = build()
    model = ModelAndLoss(ranker, towers()).eval()
    rows = batch(ranker.tasks)
    weights = rows.weights.clone()
    weights[3:] = 0
    loss, _ = model(dataclasses.replace(rows, weights=weights))
    loss_of_kept, _ = model(batch(ranker.tasks)._map(lambda values: values[:3]))
    assert loss.item() == pytest.approx(3 / 5 * loss_of_kept.item(), rel=1e-6)
