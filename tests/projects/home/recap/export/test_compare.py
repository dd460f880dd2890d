"""Checks what counts as a difference between an exported model and the ranker."""

import math
from collections.abc import Callable

import pytest
import torch

from common.errors import UserError
from projects.home.recap.export.compare import ComparedRows, Comparison

Tensors = dict[str, torch.Tensor]

ROWS = ComparedRows({"continuous": torch.linspace(-3, 3, 20).view(10, 2)}, [f"case {row}" for row in range(10)], 3)


def ranker(inputs: Tensors) -> Tensors:
    """Return outputs of two tasks whose score weights are 2 and -3."""
    logits = inputs["continuous"] * torch.tensor([1.0, -2.0])
    probabilities = torch.sigmoid(logits)
    score = (probabilities.double() * torch.tensor([2.0, -3.0])).sum(1)
    return {"logits": logits, "probabilities": probabilities, "score": score}


def comparison() -> Comparison:
    return Comparison(ranker, ROWS, ["like", "reply"], torch.tensor([2.0, -3.0]))


def changed(change: Callable[[Tensors], None], only_at: int | None = None) -> Callable[[Tensors], Tensors]:
    """Return a model that changes the outputs of the ranker, of all batches or of those with a number of rows."""

    def model(inputs: Tensors) -> Tensors:
        outputs = {name: values.clone() for name, values in ranker(inputs).items()}
        if only_at in (None, len(inputs["continuous"])):
            change(outputs)
        return outputs

    return model


def add(name: str, difference: float, row: int = -1) -> Callable[[Tensors], None]:
    def change(outputs: Tensors) -> None:
        outputs[name].view(len(outputs[name]), -1)[row, -1] += difference

    return change


def test_equal_outputs_pass() -> None:
    assert comparison().check("model.onnx", ranker) == {"logits": 0.0, "probabilities": 0.0, "score": 0.0}


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [("probabilities", 0.9e-5, 1.2e-5), ("probabilities", -0.9e-5, -1.2e-5), ("score", 4.9e-5, 5.1e-5)],
)
def test_a_probability_may_differ_by_1e_5_and_a_score_by_that_share_of_its_weights(
    name: str, allowed: float, refused: float
) -> None:
    found = comparison().check("model.onnx", changed(add(name, allowed)))
    assert found[name] == pytest.approx(abs(allowed), abs=1e-7)
    with pytest.raises(UserError, match=rf"^model.onnx: {name}.* is .* in the row \"case 0\" of a batch of 1, but the"):
        comparison().check("model.onnx", changed(add(name, refused)))


def test_a_difference_in_one_row_of_one_batch_is_found_and_named() -> None:
    with pytest.raises(UserError, match=r'probabilities of the task reply is .* in the row "case 7" of a batch of 10'):
        comparison().check("model.pt2", changed(add("probabilities", 0.1, row=7), only_at=10))
    with pytest.raises(UserError, match=r'logits of the task reply is .* in the row "case 0" of a batch of 1,'):
        comparison().check("model.pt2", changed(add("logits", 0.1), only_at=1))


def test_nan_on_one_side_is_a_difference() -> None:
    spoil = add("probabilities", math.nan, row=0)
    with pytest.raises(UserError, match="probabilities of the task reply is nan"):
        comparison().check("model.onnx", changed(spoil))
    undefined = Comparison(changed(spoil), ROWS, ["like", "reply"], None)
    with pytest.raises(UserError, match="but the ranker computes nan"):
        undefined.check("model.onnx", ranker)
    assert undefined.check("model.onnx", changed(spoil))["probabilities"] == 0.0


def test_another_set_type_or_shape_of_outputs_is_a_difference() -> None:
    with pytest.raises(
        UserError, match=r"^model.onnx returns logits, probabilities, but the ranker returns logits, pro"
    ):
        comparison().check("model.onnx", changed(lambda outputs: outputs.__delitem__("score")))
    with pytest.raises(
        UserError, match=r"^model.onnx: score is torch.float32 \[1\] for 1 rows, .* torch.float64 \[1\]"
    ):
        comparison().check("model.onnx", changed(lambda outputs: outputs.update(score=outputs["score"].float())))
    with pytest.raises(UserError, match=r"^model.onnx: logits is torch.float32 \[1\] for 1 rows, "):
        comparison().check("model.onnx", changed(lambda outputs: outputs.update(logits=outputs["logits"][:, 0])))
