import pytest
import torch

from projects.home.recap.data.batch import RecapBatch


def batch(reference: bool = True) -> RecapBatch:
    return RecapBatch(
        continuous=torch.zeros(2, 5),
        binary=torch.zeros(2, 3),
        labels=torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]),
        weights=torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        tasks=("like", "reply", "share"),
        reference_probabilities=torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]) if reference else None,
    )


def test_in_order_of_reorders_all_columns_of_tasks():
    ordered = batch().in_order_of(["share", "like"])
    assert ordered.tasks == ("share", "like")
    assert ordered.labels.tolist() == [[0, 0], [0, 1]]
    assert ordered.weights.tolist() == [[3, 1], [6, 4]]
    assert ordered.reference_probabilities is not None
    assert torch.equal(ordered.reference_probabilities, torch.tensor([[0.3, 0.1], [0.6, 0.4]]))
    assert torch.equal(ordered.continuous, batch().continuous)


def test_in_order_of_works_without_reference_probabilities():
    assert batch(reference=False).in_order_of(["reply"]).reference_probabilities is None


def test_in_order_of_returns_the_same_batch_if_the_order_is_unchanged():
    given = batch()
    assert given.in_order_of(["like", "reply", "share"]) is given


def test_in_order_of_rejects_a_task_without_labels():
    with pytest.raises(ValueError, match=r"click, video.* like, reply, share"):
        batch().in_order_of(["like", "click", "video"])


def test_moves_all_tensors_to_a_device():
    moved = batch().to("meta")
    assert moved.tasks == ("like", "reply", "share")
    assert moved.reference_probabilities is not None
    assert moved.labels.device.type == moved.reference_probabilities.device.type == "meta"
    assert moved.batch_size == 2
