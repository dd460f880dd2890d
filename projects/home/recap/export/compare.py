"""Compares an exported model with its ranker."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from common.errors import UserError
from projects.home.recap.export.flat_ranker import Scorer, Tensors

TOLERANCE = 1e-5
"""Largest difference of a probability; that of a score is this times the sum of the absolute score weights."""

_SCORE = "score"
_LOGITS = {"logits", "calibrated_logits"}


@dataclasses.dataclass(frozen=True)
class ComparedRows:
    """Rows on which models are compared.

    Attributes:
      inputs: inputs of the ranker by name, [rows, width].
      names: what each row is, for messages.
      num_alone: number of rows, from the first one, that are also scored alone.
    """

    inputs: dict[str, torch.Tensor]
    names: Sequence[str]
    num_alone: int

    def batches(self) -> Iterator[range]:
        """Yield the batches to score: each of the first rows alone, two rows, and all."""
        yield from (range(row, row + 1) for row in range(self.num_alone))
        yield range(2)
        yield range(len(self.names))


class ExpectedBatch(NamedTuple):
    """Rows and the outputs of the ranker for them."""

    rows: range
    outputs: Tensors


class Comparison:
    """Compares models with the outputs of one ranker."""

    def __init__(self, ranker: Scorer, rows: ComparedRows, tasks: Sequence[str], weights: torch.Tensor | None) -> None:
        """Compute the outputs of the ranker.

        Args:
          ranker: the ranker.
          rows: the rows to compare on.
          tasks: names of the tasks, for messages.
          weights: the score weights, [tasks]; None without a score.
        """
        self._rows = rows
        self._tasks = tasks
        self._tolerance = {_SCORE: TOLERANCE * float(weights.abs().sum())} if weights is not None else {}
        with torch.no_grad():
            self._expected = [ExpectedBatch(batch, ranker(self._inputs(batch))) for batch in rows.batches()]

    @property
    def outputs(self) -> Tensors:
        """Outputs of the ranker for all rows."""
        return self._expected[-1].outputs

    def check(self, name: str, model: Scorer) -> dict[str, float]:
        """Compare a model with the ranker.

        Args:
          name: name of the model, for messages.
          model: the model.

        Returns:
          The largest difference of each output. Logits are compared as probabilities.

        Raises:
          UserError: an output is missing, has another shape or type, is NaN in one of the two only, or differs by more
            than the tolerance.
        """
        largest: dict[str, float] = {}
        for rows, expected in self._expected:
            found = model(self._inputs(rows))
            if list(found) != list(expected):
                raise UserError(f"{name} returns {', '.join(found)}, but the ranker returns {', '.join(expected)}")
            for output, values in expected.items():
                difference = self._difference(name, output, values, found[output], rows)
                largest[output] = max(difference, largest.get(output, 0.0))
        return largest

    def _inputs(self, rows: range) -> dict[str, torch.Tensor]:
        return {name: values[rows.start : rows.stop] for name, values in self._rows.inputs.items()}

    def _difference(self, name: str, output: str, expected: torch.Tensor, found: torch.Tensor, rows: range) -> float:
        if (expected.shape, expected.dtype) != (found.shape, found.dtype):
            raise UserError(
                f"{name}: {output} is {found.dtype} {list(found.shape)} for {len(rows)} rows, but the ranker computes "
                f"{expected.dtype} {list(expected.shape)}"
            )
        compared = (expected.double(), found.double())
        first, second = (torch.sigmoid(values) for values in compared) if output in _LOGITS else compared
        differences = (first - second).abs()
        tolerance = self._tolerance.get(output, TOLERANCE)
        same = (first == second) | (first.isnan() & second.isnan())
        wrong = ~same & ~(differences <= tolerance)
        if wrong.any():
            place = tuple(wrong.nonzero()[0].tolist())
            task = f" of the task {self._tasks[place[1]]}" if len(place) > 1 else ""
            raise UserError(
                f'{name}: {output}{task} is {found[place].item():.9g} in the row "{self._rows.names[rows[place[0]]]}" '
                f"of a batch of {len(rows)}, but the ranker computes {expected[place].item():.9g}. The two may differ "
                f"by {tolerance:.3g}. This file was not published, and neither was any other"
            )
        return float(torch.where(same, 0.0, differences).max())
