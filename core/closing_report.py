"""Formats what a command prints at its end: metrics, the best step, and the paths of all results."""

from collections.abc import Callable, Sequence
from pathlib import Path

from common.tracking.measurement import Measurement
from core.checkpoints.chosen import evaluations
from core.run.early_stopping import BestEvaluation


def closing_report(
    metrics_table: Callable[[Measurement], str],
    checkpoints: Path,
    metrics: Path,
    resolved_config: Path | None,
    best: BestEvaluation | None,
) -> str:
    """Return the metrics of the best step, or else the newest ones, and the paths of all results.

    Args:
      metrics_table: formats an evaluation's metrics as a table.
      checkpoints: directory of the checkpoints.
      metrics: metrics file.
      resolved_config: file of the resolved configuration; None if the command wrote none.
      best: the best evaluation; None if the configuration does not say what is best.
    """
    measured = evaluations(metrics)
    shown: dict[str | None, Measurement] = {measurement.partition: measurement for measurement in measured}
    if best is not None:
        shown |= {m.partition: m for m in measured if m.step == best.step}
    lines = [""]
    for measurement in shown.values():
        partial = ", stopped by eval_timeout_in_s" if measurement.timing.get("timed_out") else ""
        which = ", the best" if best is not None and measurement.step == best.step else ""
        examples = f"{measurement.metrics['examples']:,} examples{partial}"
        title = f"{measurement.partition} after step {measurement.step}{which}: {examples}"
        has_examples = bool(measurement.metrics["examples"])
        lines += [title, metrics_table(measurement), ""] if has_examples else [title, ""]
    if best is not None:
        lines.append(f"best           {best}")
        last = measured[-1].step if measured else best.step  # the file may have been removed
        if last != best.step:
            value = _value(measured, last, best.partition, best.metric)
            shown_value = "not available" if value is None else f"{value:.6g}"
            lines.append(f"last           step {last}, {best.metric} on {best.partition} {shown_value}")
    lines += [f"checkpoints    {checkpoints}", f"metrics        {metrics}"]
    if resolved_config is not None:
        lines.append(f"configuration  {resolved_config}")
    return "\n".join(lines) + "\n"


def _value(measured: Sequence[Measurement], step: int, partition: str, metric: str) -> float | None:
    values = [m.metrics.get(metric) for m in measured if m.step == step and m.partition == partition]
    return values[-1] if values else None
