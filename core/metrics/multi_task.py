"""Metrics of several binary tasks: loss, RCE, AUROC, CTR and mean prediction, each per task and as a mean over tasks.

Sums and histograms in float64, of constant size, reduced over the ranks once, when they are asked for.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

# AUROC is computed from histograms of the logit of the prediction: this many bins over [-_LOGIT_RANGE, _LOGIT_RANGE].
_BINS = 2**15
_LOGIT_RANGE = 20.0
# Keeps the logarithm of a prediction of exactly 0 or 1 finite.
_EPSILON = 1e-12
# A reachable RCE below this is rounding: the reference probabilities are all alike.
_NOTHING_REACHABLE = 1e-9

# Rows of the sums; the last three in expectation over labels drawn from the reference probabilities.
_EXAMPLES, _WEIGHT, _POSITIVE, _PREDICTED, _CROSS_ENTROPY = range(5)
_REFERENCE_POSITIVE, _REFERENCE_CROSS_ENTROPY, _REFERENCE_ENTROPY = range(5, 8)


class MultiTaskMetrics:
    """Per task, from calibrated probabilities and the example weights:

    - loss: weighted mean cross-entropy, in nats.
    - rce: relative cross-entropy, 100 * (1 - CE(model) / CE(the base rate as a constant prediction)): the percentage of
      the naive predictor's cross-entropy that the model saves.
    - auroc: area under the ROC curve; pairs whose logits fall into one bin of width 2 * 20 / 2**15 (beyond -20 and 20
      it is one bin each) count half, so that its error is at most half the share of such pairs among all pairs of a
      positive and a negative.
    - ctr: weighted share of positives. mean_prediction: weighted mean of the predictions.
    - reachable_rce and share_of_reachable_rce: where the data brings the probability that each label was drawn from,
      its RCE, which no model exceeds, and the model's share of it. Both in expectation over labels drawn from it, so
      that a handful of positives doesn't blur them.

    A task without a positive (or a negative) has no rce and no auroc: None, left out of means over tasks. A prediction
    that is NaN makes its task's metrics NaN, and their means.
    """

    def __init__(self, tasks: Sequence[str], device: torch.device, *, has_reference: bool = False) -> None:
        """Args:
        tasks: names, in the order of the outputs' columns.
        device: of the outputs.
        has_reference: outputs bring "reference_probabilities".
        """
        self._tasks = list(tasks)
        self._has_reference = has_reference
        self._sums = torch.zeros(8, len(self._tasks), dtype=torch.float64, device=device)
        # Weight per label (negative, positive), task and bin.
        self._histogram = torch.zeros(2 * len(self._tasks) * _BINS, dtype=torch.float64, device=device)
        self._offsets = torch.arange(len(self._tasks), device=device) * _BINS

    def update(self, outputs: Mapping[str, torch.Tensor]) -> None:
        """Adds a batch. "calibrated_probabilities", "labels" (0 or 1), "weights" and, where announced,
        "reference_probabilities": [batch, tasks]. A row of weight 0 counts as absent."""
        labels, weights = outputs["labels"].double(), outputs["weights"].double()
        # 0 * NaN is NaN: what a model makes of an absent row must not be looked at.
        predictions = outputs["calibrated_probabilities"].double().where(weights > 0, 0.5)
        self._sums[_EXAMPLES] += (weights > 0).sum(0)
        self._sums[_WEIGHT] += weights.sum(0)
        self._sums[_POSITIVE] += (weights * labels).sum(0)
        self._sums[_PREDICTED] += (weights * predictions).sum(0)
        self._sums[_CROSS_ENTROPY] += (weights * _cross_entropy(predictions, labels)).sum(0)
        if self._has_reference:
            reference = outputs["reference_probabilities"].double()
            self._sums[_REFERENCE_POSITIVE] += (weights * reference).sum(0)
            self._sums[_REFERENCE_CROSS_ENTROPY] += (weights * _cross_entropy(predictions, reference)).sum(0)
            self._sums[_REFERENCE_ENTROPY] += (weights * _cross_entropy(reference, reference)).sum(0)
        logits = torch.logit(predictions, eps=_EPSILON)
        bins = ((logits + _LOGIT_RANGE) * (_BINS / (2 * _LOGIT_RANGE))).long().clamp_(0, _BINS - 1)
        index = bins + self._offsets + labels.long() * (len(self._tasks) * _BINS)
        self._histogram.index_add_(0, index.flatten(), weights.flatten())

    def compute(self) -> dict[str, float | int | None]:
        """All metrics as `<task>/<metric>`, then `mean/<metric>` over the tasks that have one, and `examples`."""
        state = torch.cat([self._sums.flatten(), self._histogram])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(state)
        state = state.cpu()
        sums = state[: self._sums.numel()].view(self._sums.shape)
        negatives, positives = state[self._sums.numel() :].view(2, len(self._tasks), _BINS)
        metrics: dict[str, float | int | None] = {}
        for task, name in enumerate(self._tasks):
            values = self._task_metrics(sums[:, task].tolist())
            is_nan = math.isnan(float(sums[_PREDICTED, task]))
            values["auroc"] = math.nan if is_nan else _auroc(negatives[task], positives[task])
            metrics |= {f"{name}/{key}": value for key, value in values.items()}
        for key in ("loss", "rce", "auroc"):
            known = [v for name in self._tasks if (v := metrics[f"{name}/{key}"]) is not None]
            metrics[f"mean/{key}"] = sum(known) / len(known) if known else None
        metrics["examples"] = int(sums[_EXAMPLES].max())
        return metrics

    def _task_metrics(self, sums: Sequence[float]) -> dict[str, float | int | None]:
        weight, positive = sums[_WEIGHT], sums[_POSITIVE]
        loss = ctr = mean_prediction = None
        if weight > 0:
            loss, ctr = sums[_CROSS_ENTROPY] / weight, positive / weight
            mean_prediction = sums[_PREDICTED] / weight
        rce = _rce(sums[_CROSS_ENTROPY], weight, positive)
        values: dict[str, float | int | None] = {
            "loss": loss,
            "rce": rce,
            "ctr": ctr,
            "mean_prediction": mean_prediction,
        }
        if self._has_reference:
            reachable = _rce(sums[_REFERENCE_ENTROPY], weight, sums[_REFERENCE_POSITIVE])
            expected = _rce(sums[_REFERENCE_CROSS_ENTROPY], weight, sums[_REFERENCE_POSITIVE])
            values["reachable_rce"] = reachable
            values["share_of_reachable_rce"] = None
            if expected is not None and reachable is not None and reachable > _NOTHING_REACHABLE:
                values["share_of_reachable_rce"] = expected / reachable
        return values


def _cross_entropy(predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    predictions = predictions.clamp(_EPSILON, 1 - _EPSILON)
    return -(labels * predictions.log() + (1 - labels) * torch.log1p(-predictions))


def _rce(cross_entropy: float, weight: float, positive: float) -> float | None:
    """100 * (1 - CE / CE of the base rate); None without positives or without negatives."""
    if not 0 < positive < weight:
        return None
    rate = torch.tensor(positive / weight, dtype=torch.float64)
    return 100.0 * (1.0 - cross_entropy / (weight * float(_cross_entropy(rate, rate))))


def _auroc(negatives: torch.Tensor, positives: torch.Tensor) -> float | None:
    """From weights per bin, ascending: the weighted share of (positive, negative) pairs in order, ties half."""
    pairs = float(negatives.sum() * positives.sum())
    if pairs == 0:
        return None
    below = negatives.cumsum(0) - negatives
    return float((positives * (below + negatives / 2)).sum()) / pairs
