"""Metrics of several binary tasks, each per task and as a mean over tasks, of all examples and of strata of them."""

import math
from collections.abc import Collection, Mapping, Sequence

import torch
import torch.distributed as dist

from core.metrics.cross_entropy import cross_entropy, relative_cross_entropy
from core.metrics.exact import KeptScores
from core.metrics.histogram import LogitHistograms
from core.metrics.scores import ScoreDistribution, Scores

# A reachable RCE below this is rounding: the reference probabilities are all alike.
_NOTHING_REACHABLE = 1e-9

_MEANS = ("loss", "rce", "nrce", "auroc")

# Rows of the sums; those of the reference in expectation over labels drawn from the reference probabilities. Behind
# them come, for each threshold, the weights of the predicted positives and of the true ones among them.
_EXAMPLES, _NAN_PREDICTIONS, _WEIGHT, _POSITIVE, _PREDICTED, _CROSS_ENTROPY = range(6)
_REFERENCE_POSITIVE, _REFERENCE_CROSS_ENTROPY, _REFERENCE_ENTROPY = range(6, 9)
_THRESHOLDS = 9

_WITHOUT_PREDICTIONS = ("ctr", "reachable_rce")


class MultiTaskMetrics:
    """Per task, from calibrated probabilities and the example weights:

    - loss: weighted mean cross-entropy, in nats.
    - rce: relative cross-entropy, 100 * (1 - CE(model) / CE(the base rate as a constant prediction)): the percentage of
      the naive predictor's cross-entropy that the model saves.
    - nrce: the RCE of p * mean(label) / mean(p) instead of the predictions p: of the model, were it calibrated.
    - auroc: area under the ROC curve, ties half.
    - calibration: sum of predictions / sum of labels.
    - ctr: weighted share of positives. mean_prediction: weighted mean of the predictions.
    - precision_at_<t> and recall_at_<t>: of p >= t, for each threshold t; compared in the predictions' own dtype.
    - reachable_rce and share_of_reachable_rce: where the data brings the probability that each label was drawn from,
      its RCE, which no model exceeds, and the model's share of it. Both in expectation over labels drawn from it, so
      that a handful of positives doesn't blur them.

    nrce and auroc come from histograms (histogram.py tells how far they may be off) or, if `exact`, from all examples,
    which are kept. All else is sums in float64. State is reduced over the ranks once, when metrics are asked for.

    What is not defined is None, and left out of means over tasks: rce, nrce and auroc without positives or without
    negatives, calibration and recall without positives, precision where nothing is predicted positive. A prediction
    that is NaN makes all of its task NaN that looks at predictions, and the means over tasks.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        device: torch.device,
        *,
        evaluation_tasks: Collection[str] = (),
        strata: Sequence[str] = (),
        thresholds: Sequence[float] = (),
        exact: bool = False,
        has_reference: bool = False,
    ) -> None:
        """Args:
        tasks: names, in the order of the outputs' columns.
        device: of the outputs.
        evaluation_tasks: those of `tasks` to measure; empty: all.
        strata: names of subsets of the examples, for which all is measured again; outputs bring "strata".
        thresholds: of precision and recall, in (0, 1).
        exact: nrce and auroc without bins, in memory that grows with the examples.
        has_reference: outputs bring "reference_probabilities".
        """
        chosen = [column for column, task in enumerate(tasks) if not evaluation_tasks or task in evaluation_tasks]
        self._tasks = [tasks[column] for column in chosen]
        self._columns = torch.tensor(chosen, device=device)
        self._all_columns = len(chosen) == len(tasks)
        self._strata = list(strata)
        self._thresholds = list(thresholds)
        self._has_reference = has_reference
        groups = 1 + len(self._strata)  # all examples, and the strata
        rows = _THRESHOLDS + 2 * len(self._thresholds)
        self._sums = torch.zeros(rows, groups, len(self._tasks), dtype=torch.float64, device=device)
        kind = KeptScores if exact else LogitHistograms
        self._scores: Scores = kind(groups, len(self._tasks), device)

    @property
    def headline(self) -> tuple[str, ...]:
        """The means over tasks."""
        return tuple(f"mean/{key}" for key in _MEANS)

    def update(self, outputs: Mapping[str, torch.Tensor]) -> None:
        """Adds a batch. "calibrated_probabilities", "labels" (0 or 1), "weights" and, where announced,
        "reference_probabilities": [batch, tasks]; where announced, "strata": bool [batch, strata]. A row of weight 0
        counts as absent."""
        probabilities = self._chosen(outputs["calibrated_probabilities"])
        raw_labels = self._chosen(outputs["labels"])
        raw_weights = self._chosen(outputs["weights"])[:, None]
        if self._strata:
            strata = outputs["strata"][:, :, None]
            raw_weights = torch.cat([raw_weights, raw_weights * strata], dim=1)
        self._scores.update(probabilities, raw_labels, raw_weights)

        predictions, labels, weights = probabilities.double(), raw_labels.double(), raw_weights.double()
        present = weights > 0
        # 0 * NaN is NaN: a row that is absent, here or in a stratum, must not be looked at. So NaN is only counted.
        is_nan = predictions.isnan()
        predictions = predictions.where(~is_nan, 0.5)

        def add(row: int, values: torch.Tensor) -> None:
            self._sums[row] += (weights * values[:, None]).sum(0)

        self._sums[_EXAMPLES] += present.sum(0)
        self._sums[_NAN_PREDICTIONS] += (present & is_nan[:, None]).sum(0)
        self._sums[_WEIGHT] += weights.sum(0)
        add(_POSITIVE, labels)
        add(_PREDICTED, predictions)
        add(_CROSS_ENTROPY, cross_entropy(predictions, labels))
        if self._has_reference:
            reference = self._chosen(outputs["reference_probabilities"]).double()
            add(_REFERENCE_POSITIVE, reference)
            add(_REFERENCE_CROSS_ENTROPY, cross_entropy(predictions, reference))
            add(_REFERENCE_ENTROPY, cross_entropy(reference, reference))
        for row, threshold in zip(range(_THRESHOLDS, len(self._sums), 2), self._thresholds, strict=True):
            predicted_positive = probabilities >= threshold
            add(row, predicted_positive)
            add(row + 1, predicted_positive * labels)

    def compute(self) -> dict[str, float | int | None]:
        """All metrics as `<task>/<metric>`, then `mean/<metric>` over the tasks that have one, and `examples`; the same
        again for each stratum as `stratum/<stratum>/...`."""
        state = torch.cat([self._sums.flatten(), self._scores.summands()])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(state)
        state = state.cpu()
        sums = state[: self._sums.numel()].view(self._sums.shape)
        distribution = self._scores.over_all_ranks(state[self._sums.numel() :])
        metrics: dict[str, float | int | None] = {}
        for group, prefix in enumerate(["", *(f"stratum/{name}/" for name in self._strata)]):
            of_tasks = {
                name: self._task_metrics(sums[:, group, task].tolist(), distribution(group, task))
                for task, name in enumerate(self._tasks)
            }
            for name, values in of_tasks.items():
                metrics |= {f"{prefix}{name}/{key}": value for key, value in values.items()}
            for key in _MEANS:
                known = [value for values in of_tasks.values() if (value := values[key]) is not None]
                metrics[f"{prefix}mean/{key}"] = sum(known) / len(known) if known else None
            metrics[f"{prefix}examples"] = int(sums[_EXAMPLES, group].max())
        return metrics

    def _chosen(self, output: torch.Tensor) -> torch.Tensor:
        """The columns of the tasks to measure."""
        return output if self._all_columns else output.index_select(1, self._columns)

    def _task_metrics(self, sums: Sequence[float], scores: ScoreDistribution) -> dict[str, float | None]:
        weight, positive, predicted = sums[_WEIGHT], sums[_POSITIVE], sums[_PREDICTED]
        values = {
            "loss": _ratio(sums[_CROSS_ENTROPY], weight),
            "rce": relative_cross_entropy(sums[_CROSS_ENTROPY], weight, positive),
            "nrce": None,
            "auroc": scores.auroc(),
            "calibration": _ratio(predicted, positive),
            "ctr": _ratio(positive, weight),
            "mean_prediction": _ratio(predicted, weight),
        }
        # Where nothing is predicted, no factor makes the means equal.
        if positive > 0 and predicted > 0:
            change = scores.cross_entropy_change(positive / predicted)
            values["nrce"] = relative_cross_entropy(sums[_CROSS_ENTROPY] + change, weight, positive)
        for row, threshold in zip(range(_THRESHOLDS, len(sums), 2), self._thresholds, strict=True):
            predicted_positive, true_positive = sums[row : row + 2]
            values[f"precision_at_{threshold}"] = _ratio(true_positive, predicted_positive)
            values[f"recall_at_{threshold}"] = _ratio(true_positive, positive)
        if self._has_reference:
            reachable = relative_cross_entropy(sums[_REFERENCE_ENTROPY], weight, sums[_REFERENCE_POSITIVE])
            expected = relative_cross_entropy(sums[_REFERENCE_CROSS_ENTROPY], weight, sums[_REFERENCE_POSITIVE])
            values["reachable_rce"] = reachable
            values["share_of_reachable_rce"] = None
            if expected is not None and reachable is not None and reachable > _NOTHING_REACHABLE:
                values["share_of_reachable_rce"] = expected / reachable
        if sums[_NAN_PREDICTIONS] > 0:
            values |= dict.fromkeys((key for key in values if key not in _WITHOUT_PREDICTIONS), math.nan)
        return values


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
