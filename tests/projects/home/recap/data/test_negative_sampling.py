"""downsample_negatives, from files with rows made by hand to batches."""

import dataclasses
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
    """Of a batch's rows, less those that fill it up."""
    return batch.continuous[batch.weights[:, 0] > 0, 0].int().tolist()


def lanes_of(batch: RecapBatch, lanes: int) -> Iterator[tuple[list[int], list[float]]]:
    """Numbers and weights of the rows of each lane."""
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
def test_positives_are_kept_and_negatives_fill_up(tmp_path, engagements, positive, evaluation):
    """Lane by lane of each batch, compared with the rows that were read for it."""
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
        (kept, of_all[0])
        for one, other in pairs
        for kept, of_all in zip(lanes_of(one.batch, 2), lanes_of(other.batch, 2), strict=True)
    ]
    for (kept, weights), rows in shares:
        num_positives = sum(map(positive, rows))
        num_negatives = len(rows) - num_positives
        assert len(kept) == min(8, len(rows))
        kept_positives = min(num_positives, 7)
        assert sum(map(positive, kept)) == kept_positives
        assert kept == [row for row in rows if row in kept], "in the order in which they were read"
        assert weights == pytest.approx(
            [
                (num_positives / kept_positives if positive(row) else num_negatives / (len(kept) - kept_positives))
                / MULTIPLIER
                for row in kept
            ]
        )
        assert sum(weights) == pytest.approx(len(rows) / MULTIPLIER)


def test_rectified_labels_decide_what_is_positive(tmp_path):
    rows = numbered_rows(24)
    rows["like"][:] = 1
    rows["liked_ms"][5:] += 4 * HOUR
    write(tmp_path, rows)
    data = config(tmp_path, downsample(["like"]) | {"rectify_labels": RECTIFY}, global_batch_size=8)
    [placed] = opened(data).reader(0, 1).evaluate()
    assert numbers(placed.batch)[:5] == [0, 1, 2, 3, 4]
    assert placed.batch.labels[:, 0].tolist() == [1.0] * 5 + [0.0] * 3
    assert placed.batch.weights[:, 0].tolist() == pytest.approx([1 / 3] * 5 + [19 / 9] * 3)


def test_weights_multiply_with_others(tmp_path):
    write(tmp_path, numbered_rows(24))
    rates = {"pos_downsampling_rate": 0.5, "neg_downsampling_rate": 0.25}
    tasks = {"like": rates, "reply": {}, "share": {}}
    wanted = downsample(["like"]) | extract(("age", "continuous", 4))
    data = config(tmp_path, wanted, global_batch_size=12, tasks=tasks, weight_column="age")
    [placed] = opened(data).reader(0, 1).evaluate()
    batch = placed.batch
    weights = batch.weights[:, 1] / batch.extracted["age"]
    like = batch.labels[:, 0] == 1
    assert weights.tolist() == pytest.approx(torch.where(like, 1 / 3, 16 / (4 * 3)).tolist())
    assert batch.weights[:, 0].tolist() == pytest.approx((batch.weights[:, 1] * torch.where(like, 2, 4)).tolist())


def test_processes_choose_the_same_rows_and_a_resume_goes_on_with_them(tmp_path):
    write(tmp_path, numbered_rows(200))
    dataset = opened(config(tmp_path, downsample(["like"]), global_batch_size=16, lanes=4), evaluation=False)

    def batches(ranks: int, position: Position | None = None) -> list[list[tuple[list[int], list[float]]]]:
        """Of each global batch, its lanes."""
        of_rank = [
            [placed.batch for placed in dataset.reader(rank, ranks).train(seed=5, num_epochs=2, position=position)]
            for rank in range(ranks)
        ]
        return [
            [list(lanes_of(of_rank[lane % ranks][step], 4 // ranks))[lane // ranks] for lane in range(4)]
            for step in range(len(of_rank[0]))
        ]

    alone = batches(1)
    assert len(alone) == 2 * (200 // 48)
    assert alone[0] != alone[4], "another epoch, other rows"
    assert batches(2) == batches(4) == alone
    places = [placed.position for placed in dataset.reader(0, 1).train(seed=5, num_epochs=2)]
    for done, position in enumerate(places, start=1):
        assert batches(2, position) == alone[done:]
    assert dataset.reader(0, 1).batches_per_epoch == 4
    assert dataset.reader(0, 1).remaining_batches(places[2], 2) == 5


def test_the_loss_is_that_of_all_rows_in_expectation(tmp_path):
    """Through the reader, over many epochs: loss and gradient of a linear model, within five standard errors."""
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
    batches = [placed.batch for placed in reader.train(seed=1, num_epochs=400)]
    unweighted = [dataclasses.replace(batch, weights=torch.ones_like(batch.weights)) for batch in batches]
    found = torch.stack([loss_and_gradient(batch) for batch in (*batches, *unweighted)])
    assert len(batches) == 800
    by_epoch = found.reshape(2, 400, 2, -1).mean(dim=2)
    difference = (by_epoch.mean(dim=1) - expected).abs() / (by_epoch.std(dim=1) / 400**0.5)
    assert (difference[0] < 5).all()
    assert (difference[1] > 5).any(), "without the weights there is a bias"


def test_an_evaluation_counts_every_row_alike(tmp_path):
    """Also those of the last, shorter shares: all weights sum to the rows over the multiplier, class by class."""
    write(tmp_path, numbered_rows(61))
    data = config(tmp_path, downsample(["like"], multiplier=4), global_batch_size=8, lanes=4)
    for ranks in (1, 2):
        batches = [placed.batch for rank in range(ranks) for placed in opened(data).reader(rank, ranks).evaluate()]
        weights = torch.cat([batch.weights[:, 0] for batch in batches]).double()
        labels = torch.cat([batch.labels[:, 0] for batch in batches]).double()
        assert weights.sum().item() == pytest.approx(61 / 4)
        assert (weights * labels).sum().item() == pytest.approx(21 / 4)


def test_another_number_of_tasks_than_was_meant(tmp_path):
    write(tmp_path, numbered_rows(20))
    with pytest.raises(ConfigError) as caught:
        opened(config(tmp_path, downsample(), tasks={task: {} for task in TASKS}))
    key = "train_data.preprocess.downsample_negatives.num_engagements"
    assert str(caught.value) == f"{key}: 3 given, but train_data.tasks has 2"


def test_too_few_rows_for_what_is_read_for_a_batch(tmp_path):
    write(tmp_path, numbered_rows(40))
    reader = opened(config(tmp_path, downsample(), global_batch_size=16, lanes=2), evaluation=False).reader(0, 1)
    with pytest.raises(DataError, match=f"{tmp_path}: 40 rows, fewer than "):
        reader.check_trainable()
