"""Tests of downsample_negatives, from files of known rows to batches."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from common.errors import ConfigError
from common.reader.files import DataError
from common.reader.order import Position
from core.losses import multi_task_cross_entropy
from projects.home.recap.data.batch import RecapBatch
from tests.support.numbered_rows import (
    HOUR,
    RECTIFY,
    TASKS,
    config,
    extract,
    numbered_rows,
    opened,
    write,
)

MULTIPLIER = 3


def downsample(engagements: list[str] | None = None, multiplier: int = MULTIPLIER) -> dict[str, Any]:
    return {
        "downsample_negatives": {
            "batch_multiplier": multiplier,
            "engagements_list": engagements or [],
            "num_engagements": 3,
        }
    }


def numbers(batch: RecapBatch) -> list[int]:
    """Return the numbers of a batch's rows, without padding."""
    return batch.continuous[batch.weights[:, 0] > 0, 0].int().tolist()


def lanes_of(batch: RecapBatch, lanes: int) -> Iterator[tuple[list[int], list[float]]]:
    """Yield the numbers and weights of the rows of each lane, without padding."""
    size = batch.batch_size // lanes
    for lane in range(lanes):
        part = batch._map(lambda tensor, begin=lane * size: tensor[begin : begin + size])  # type: ignore[misc]
        yield numbers(part), part.weights[part.weights[:, 0] > 0, 0].tolist()


@pytest.mark.parametrize(
    ("engagements", "positive"),
    [
        (["like"], lambda row: row % 3 == 0),
        (["like", "reply"], lambda row: row % 3 == 0 or row % 4 == 1),
        ([], lambda row: row % 3 == 0 or row % 4 == 1 or row % 5 == 2),  # share has no tower
    ],
)
@pytest.mark.parametrize("evaluation", [False, True])
def test_positives_are_kept_and_negatives_fill_the_batch(tmp_path, engagements, positive, evaluation):
    """Compares each lane of each batch with the rows that were read for it."""
    write(tmp_path, numbered_rows(200))
    sizes = {"global_batch_size": 16, "lanes": 2}
    chosen = opened(config(tmp_path, downsample(engagements), **sizes), evaluation=evaluation).reader(0, 1)
    sizes["global_batch_size"] *= MULTIPLIER
    read = opened(config(tmp_path, {}, **sizes), evaluation=evaluation).reader(0, 1)
    if evaluation:
        pairs = list(zip(chosen.evaluate(), read.evaluate(), strict=True))
    else:
        pairs = list(zip(chosen.train(seed=3), read.train(seed=3), strict=True))
    assert len(pairs) == (5 if evaluation else 4)
    shares = [
        (kept, all_rows[0])
        for one, other in pairs
        for kept, all_rows in zip(lanes_of(one.batch, 2), lanes_of(other.batch, 2), strict=True)
    ]
    for (kept, weights), rows in shares:
        num_positives = sum(map(positive, rows))
        num_negatives = len(rows) - num_positives
        assert len(kept) == min(8, len(rows))
        kept_positives = min(num_positives, 7)
        assert sum(map(positive, kept)) == kept_positives
        assert kept == [row for row in rows if row in kept], "in the order of reading"
        assert weights == pytest.approx(
            [
                (num_positives / kept_positives if positive(row) else num_negatives / (len(kept) - kept_positives))
                / MULTIPLIER
                for row in kept
            ]
        )
        assert sum(weights) == pytest.approx(len(rows) / MULTIPLIER)


def test_rectified_labels_decide_which_rows_are_positive(tmp_path):
    rows = numbered_rows(24)
    rows["like"][:] = 1
    rows["liked_ms"][5:] += 4 * HOUR
    write(tmp_path, rows)
    data = config(tmp_path, downsample(["like"]) | {"rectify_labels": RECTIFY}, global_batch_size=8)
    [positioned] = opened(data).reader(0, 1).evaluate()
    assert numbers(positioned.batch)[:5] == [0, 1, 2, 3, 4]
    assert positioned.batch.labels[:, 0].tolist() == [1.0] * 5 + [0.0] * 3
    assert positioned.batch.weights[:, 0].tolist() == pytest.approx([1 / 3] * 5 + [19 / 9] * 3)


def test_weights_multiply_other_weights(tmp_path):
    write(tmp_path, numbered_rows(24))
    rates = {"pos_downsampling_rate": 0.5, "neg_downsampling_rate": 0.25}
    tasks = {"like": rates, "reply": {}, "share": {}}
    wanted = downsample(["like"]) | extract(("age", "continuous", 4))
    data = config(tmp_path, wanted, global_batch_size=12, tasks=tasks, weight_column="age")
    [positioned] = opened(data).reader(0, 1).evaluate()
    batch = positioned.batch
    weights = batch.weights[:, 1] / batch.extracted["age"]
    like = batch.labels[:, 0] == 1
    assert weights.tolist() == pytest.approx(torch.where(like, 1 / 3, 16 / (4 * 3)).tolist())
    assert batch.weights[:, 0].tolist() == pytest.approx((batch.weights[:, 1] * torch.where(like, 2, 4)).tolist())


def test_the_choice_depends_on_neither_the_number_of_ranks_nor_a_resume(tmp_path):
    write(tmp_path, numbered_rows(200))
    dataset = opened(config(tmp_path, downsample(["like"]), global_batch_size=16, lanes=4), evaluation=False)

    def batches(ranks: int, position: Position | None = None) -> list[list[tuple[list[int], list[float]]]]:
        """Return the lanes of each global batch."""
        by_rank = [
            [
                positioned.batch
                for positioned in dataset.reader(rank, ranks).train(seed=5, num_epochs=2, position=position)
            ]
            for rank in range(ranks)
        ]
        return [
            [list(lanes_of(by_rank[lane % ranks][step], 4 // ranks))[lane // ranks] for lane in range(4)]
            for step in range(len(by_rank[0]))
        ]

    alone = batches(1)
    assert len(alone) == 2 * (200 // 48)
    assert alone[0] != alone[4], "another epoch chooses other rows"
    assert batches(2) == batches(4) == alone
    positions = [positioned.position for positioned in dataset.reader(0, 1).train(seed=5, num_epochs=2)]
    for done, position in enumerate(positions, start=1):
        assert batches(2, position) == alone[done:]
    assert dataset.reader(0, 1).batches_per_epoch == 4
    assert dataset.reader(0, 1).remaining_batches(positions[2], 2) == 5


def test_the_expected_loss_is_the_loss_over_all_rows(tmp_path):
    """Compares loss and gradient of a linear model, averaged over many epochs, within five standard errors."""
    write(tmp_path, numbered_rows(96), row_group_size=32)
    weight = torch.tensor([[0.03, -0.01], [-0.02, 0.04]], requires_grad=True)

    def loss_and_gradient(batch: RecapBatch) -> torch.Tensor:
        features = batch.continuous[:, [0, 4]] / 10 - 5
        loss = multi_task_cross_entropy(features @ weight.T, batch.labels, batch.weights, torch.ones(2))
        [gradient] = torch.autograd.grad(loss, weight)
        return torch.cat([loss.detach().reshape(1), gradient.reshape(-1)]).double()

    [everything] = opened(config(tmp_path, {}, global_batch_size=96), evaluation=False).reader(0, 1).train(seed=0)
    expected = loss_and_gradient(everything.batch)
    data = config(tmp_path, downsample(["like"], multiplier=4), global_batch_size=12, lanes=2)
    reader = opened(data, evaluation=False).reader(0, 1)
    batches = [positioned.batch for positioned in reader.train(seed=1, num_epochs=400)]
    unweighted = [dataclasses.replace(batch, weights=torch.ones_like(batch.weights)) for batch in batches]
    found = torch.stack([loss_and_gradient(batch) for batch in (*batches, *unweighted)])
    assert len(batches) == 800
    by_epoch = found.reshape(2, 400, 2, -1).mean(dim=2)
    difference = (by_epoch.mean(dim=1) - expected).abs() / (by_epoch.std(dim=1) / 400**0.5)
    assert (difference[0] < 5).all()
    assert (difference[1] > 5).any(), "without the weights the loss is biased"


def test_an_evaluation_counts_every_row_equally(tmp_path):
    """The weights of each class sum to its rows divided by the multiplier, although the last shares are shorter."""
    write(tmp_path, numbered_rows(61))
    data = config(tmp_path, downsample(["like"], multiplier=4), global_batch_size=8, lanes=4)
    for ranks in (1, 2):
        batches = [
            positioned.batch for rank in range(ranks) for positioned in opened(data).reader(rank, ranks).evaluate()
        ]
        weights = torch.cat([batch.weights[:, 0] for batch in batches]).double()
        labels = torch.cat([batch.labels[:, 0] for batch in batches]).double()
        assert weights.sum().item() == pytest.approx(61 / 4)
        assert (weights * labels).sum().item() == pytest.approx(21 / 4)


def test_a_wrong_num_engagements_is_an_error(tmp_path):
    write(tmp_path, numbered_rows(20))
    with pytest.raises(ConfigError) as caught:
        opened(config(tmp_path, downsample(), tasks={task: {} for task in TASKS}))
    key = "train_data.preprocess.downsample_negatives.num_engagements"
    assert re.match(rf"{key} is 3, .*train_data\.tasks has 2\b", str(caught.value))


def test_too_few_rows_to_choose_a_batch_from_is_an_error(tmp_path):
    write(tmp_path, numbered_rows(40))
    reader = opened(config(tmp_path, downsample(), global_batch_size=16, lanes=2), evaluation=False).reader(0, 1)
    with pytest.raises(DataError, match=rf"{tmp_path}: .*\b40 rows"):
        reader.check_trainable()
