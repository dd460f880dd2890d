"""Computes metrics for several binary tasks: per task and averaged over tasks, for all examples and per stratum."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from core.metrics.config import check_task_names
from core.metrics.cross_entropy import cross_entropy, entropy, relative_cross_entropy
from core.metrics.exact import KeptScores
from core.metrics.group_metrics import GroupMetrics
from core.metrics.histogram import LogitHistograms
from core.metrics.scores import ScoreDistribution, Scores

# A reachable RCE below this is a rounding error: the reference probabilities are all equal.
_NOTHING_REACHABLE = 1e-9

_HEADLINE = ("loss", "rce", "nrce", "auroc")
_MEANS = (*_HEADLINE, "pr_auc")

# Rows of the sums. The reference rows are expectations over labels drawn from the reference probabilities. The rows
# after them hold, for each threshold, the weight of the predicted positives and of the true positives.
_EXAMPLES, _NAN_PREDICTIONS, _WEIGHT, _POSITIVE, _PREDICTED, _CROSS_ENTROPY = range(6)
_REFERENCE_POSITIVE, _REFERENCE_CROSS_ENTROPY, _REFERENCE_ENTROPY = range(6, 9)
_THRESHOLDS = 9

_WITHOUT_PREDICTIONS = ("ctr", "reachable_rce", "gauc_coverage", "groups_with_both_classes", "groups_with_positives")


class MultiTaskMetrics:
    """Accumulates metrics per task from calibrated logits and example weights.

    The predictions p are the logits' probabilities in float64. Logits keep predictions apart that are equal as
    probabilities: in float32, those above logit 17 are all 1.

    - loss: weighted mean cross-entropy, in nats.
    - rce: relative cross-entropy, 100 * (1 - CE(model) / CE(the base rate as a constant prediction)). This is the
      percentage of the naive predictor's cross-entropy that the model saves.
    - nrce: RCE of p * mean(label) / mean(p) instead of the predictions p, as if the model were calibrated.
    - auroc: area under the ROC curve; ties count half.
    - pr_auc: area under the precision-recall curve, as the average precision: the mean over positives of the precision
      among the predictions that are at least as high.
    - calibration: sum of predictions / sum of labels.
    - ctr: weighted share of positives.
    - mean_prediction: weighted mean of the predictions.
    - precision_at_<t> and recall_at_<t>: precision and recall of the rule p >= t, for each threshold t, compared as
      logits in their own dtype.
    - reachable_rce: RCE of the probabilities that the labels were drawn from, if the data has them. No model exceeds
      it.
    - share_of_reachable_rce: the model's RCE / reachable_rce. Both are expectations over labels drawn from the
      probabilities, so that a small number of positives doesn't add noise.

    nrce, auroc and pr_auc come from histograms (histogram.py documents their error) or, if `exact`, from all examples,
    which stay in memory. All other metrics are sums in float64. compute() reduces the state over the ranks once.

    If examples have groups, the metrics of GroupMetrics follow, for all examples but not for strata.

    An undefined metric is None, and the means over tasks skip it: rce, nrce and auroc without positives or without
    negatives, pr_auc, calibration and recall without positives, precision without predicted positives. A NaN prediction
    makes all metrics of its task that depend on predictions NaN, and also the means over tasks.
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
        ndcg_at: Sequence[int] | None = None,
    ) -> None:
        """Initialize with zero examples.

        Args:
          tasks: names of the tasks, in the order of the outputs' columns.
          device: device of the outputs.
          evaluation_tasks: subset of `tasks` to measure; empty means all.
          strata: names of subsets of the examples to measure separately; the outputs must contain "strata".
          thresholds: thresholds for precision and recall, in (0, 1).
          exact: compute nrce, auroc and pr_auc without bins, in memory that grows with the number of examples.
          has_reference: whether the outputs contain "reference_probabilities".
          ndcg_at: values of k for ndcg_at_<k>, if the outputs contain "groups"; None if they do not.

        Raises:
          ValueError: the name of a task is empty or reserved (check_task_names()).
        """
        check_task_names(tasks)
        chosen = [column for column, task in enumerate(tasks) if not evaluation_tasks or task in evaluation_tasks]
        self._tasks = [tasks[column] for column in chosen]
        self._columns = torch.tensor(chosen, device=device)
        self._all_columns = len(chosen) == len(tasks)
        self._strata = list(strata)
        self._thresholds = list(thresholds)
        self._has_reference = has_reference
        subsets = 1 + len(self._strata)  # all examples, and the strata
        rows = _THRESHOLDS + 2 * len(self._thresholds)
        self._sums = torch.zeros(rows, subsets, len(self._tasks), dtype=torch.float64, device=device)
        kind = KeptScores if exact else LogitHistograms
        self._scores: Scores = kind(subsets, len(self._tasks), device)
        self._groups = None if ndcg_at is None else GroupMetrics(len(self._tasks), device, ndcg_at)

    @property
    def headline(self) -> tuple[str, ...]:
        """Names of the most important means over tasks."""
        return tuple(f"mean/{key}" for key in (*_HEADLINE, *(() if self._groups is None else ("gauc",))))

    def update(self, outputs: Mapping[str, torch.Tensor]) -> None:
        """Add a batch. A row with weight 0 counts as absent.

        Args:
          outputs: "calibrated_logits", "labels" (0 or 1), "weights" and, if has_reference, "reference_probabilities",
            each [batch, tasks]; if there are strata, "strata", bool [batch, strata]; unless ndcg_at is None,
            "groups", int64 [batch], with NO_GROUP for a row that is in no group.
        """
        raw_logits = self._chosen(outputs["calibrated_logits"])
        raw_labels = self._chosen(outputs["labels"])
        raw_weights = self._chosen(outputs["weights"])
        if self._groups is not None:
            self._groups.update(outputs["groups"], raw_logits, raw_labels, raw_weights)
        raw_weights = raw_weights[:, None]
        if self._strata:
            strata = outputs["strata"][:, :, None]
            raw_weights = torch.cat([raw_weights, raw_weights * strata], dim=1)
        self._scores.update(raw_logits, raw_labels, raw_weights)

        logits, labels, weights = raw_logits.double(), raw_labels.double(), raw_weights.double()
        present = weights > 0
        # 0 * NaN is NaN, which would let absent rows (of the batch or of a stratum) into the sums. Count NaN instead.
        is_nan = logits.isnan()
        logits = logits.where(~is_nan, 0.0)

        def add(row: int, values: torch.Tensor) -> None:
            self._sums[row] += (weights * values[:, None]).sum(0)

        self._sums[_EXAMPLES] += present.sum(0)
        self._sums[_NAN_PREDICTIONS] += (present & is_nan[:, None]).sum(0)
        self._sums[_WEIGHT] += weights.sum(0)
        add(_POSITIVE, labels)
        add(_PREDICTED, logits.sigmoid())
        add(_CROSS_ENTROPY, cross_entropy(logits, labels))
        if self._has_reference:
            reference = self._chosen(outputs["reference_probabilities"]).double()
            add(_REFERENCE_POSITIVE, reference)
            add(_REFERENCE_CROSS_ENTROPY, cross_entropy(logits, reference))
            add(_REFERENCE_ENTROPY, entropy(reference))
        for row, threshold in zip(range(_THRESHOLDS, len(self._sums), 2), self._thresholds, strict=True):
            predicted_positive = raw_logits >= math.log(threshold) - math.log1p(-threshold)
            add(row, predicted_positive)
            add(row + 1, predicted_positive * labels)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what update() and add() have accumulated in this process."""
        groups = {} if self._groups is None else self._groups.state()
        return {"sums": self._sums.cpu().numpy(), **self._scores.state(), **groups}

    def add(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Add what state() of another object with the same arguments has returned, as if by the same updates."""
        self._sums += torch.from_numpy(state["sums"]).to(self._sums.device)
        self._scores.add(state)
        if self._groups is not None:
            self._groups.add(state)

    def compute(self) -> dict[str, float | int | None]:
        """Return all metrics by name. Collective.

        The names are `<task>/<metric>`, `mean/<metric>` for means over the tasks with a defined value, `examples`, and
        the same for each stratum as `stratum/<stratum>/...`.
        """
        state = torch.cat([self._sums.flatten(), self._scores.summands()])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(state)
        state = state.cpu()
        sums = state[: self._sums.numel()].view(self._sums.shape)
        distribution = self._scores.over_all_ranks(state[self._sums.numel() :])
        metrics: dict[str, float | int | None] = {}
        for subset, prefix in enumerate(["", *(f"stratum/{name}/" for name in self._strata)]):
            task_metrics = {
                name: self._task_metrics(sums[:, subset, task].tolist(), distribution(subset, task))
                for task, name in enumerate(self._tasks)
            }
            means: tuple[str, ...] = _MEANS
            if self._groups is not None and subset == 0:
                means += self._groups.means
                in_groups, metrics["groups"] = self._groups.compute(sums[_WEIGHT, 0].tolist())
                for name, values in zip(self._tasks, in_groups, strict=True):
                    task_metrics[name] |= values
            for task, (name, values) in enumerate(task_metrics.items()):
                if sums[_NAN_PREDICTIONS, subset, task] > 0:
                    values |= dict.fromkeys((key for key in values if key not in _WITHOUT_PREDICTIONS), math.nan)
                metrics |= {f"{prefix}{name}/{key}": value for key, value in values.items()}
            for key in means:
                known = [value for values in task_metrics.values() if (value := values[key]) is not None]
                metrics[f"{prefix}mean/{key}"] = sum(known) / len(known) if known else None
            metrics[f"{prefix}examples"] = int(sums[_EXAMPLES, subset].max())
        return metrics

    def _chosen(self, output: torch.Tensor) -> torch.Tensor:
        """Return the columns of the tasks to measure."""
        return output if self._all_columns else output.index_select(1, self._columns)

    def _task_metrics(self, sums: Sequence[float], scores: ScoreDistribution) -> dict[str, float | int | None]:
        weight, positive, predicted = sums[_WEIGHT], sums[_POSITIVE], sums[_PREDICTED]
        values: dict[str, float | int | None] = {
            "loss": _ratio(sums[_CROSS_ENTROPY], weight),
            "rce": relative_cross_entropy(sums[_CROSS_ENTROPY], weight, positive),
            "nrce": None,
            "auroc": scores.auroc(),
            "pr_auc": scores.average_precision(),
            "calibration": _ratio(predicted, positive),
            "ctr": _ratio(positive, weight),
            "mean_prediction": _ratio(predicted, weight),
        }
        # If all predictions are 0, or so close to it that their sum is, no factor makes the means equal.
        if positive > 0 and predicted > 0 and math.isfinite(factor := positive / predicted):
            change = scores.cross_entropy_change(factor)
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
        return values


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
