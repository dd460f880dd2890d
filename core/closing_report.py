"""Formats what a command prints at its end: metrics, the best step, and the paths of all results."""

from collections.abc import Callable, Sequence
from pathlib import Path

from common.checkpointing.directory import complete_steps
from common.tracking.measurement import Measurement
from common.tracking.metrics_file import read_metrics
from core.checkpoints.best import BestSteps
from core.config.training import TrainingConfig
from core.run.early_stopping import BestEvaluation, EarlyStopping


def find_best(training: TrainingConfig, metrics: Path, checkpoints: Path) -> BestEvaluation | None:
    """Return the best evaluation in a metrics file by early_stopping or else by checkpoint_keep_best.

    Args:
      training: names the metric; without one, the result is None.
      metrics: the metrics file.
      checkpoints: directory of the checkpoints. checkpoint_keep_best compares only steps that have one.
    """
    measured = _evaluations(metrics)
    steps = complete_steps(checkpoints)
    if training.early_stopping is not None:
        early_stopping = EarlyStopping(training.early_stopping, {})
        for measurement in measured:
            early_stopping.add(measurement)
        return early_stopping.best([checkpoints / str(step) for step in steps])
    if (choice := training.checkpoint_keep_best) is None:
        return None
    for step in BestSteps([metrics], choice.partition, choice.metric, choice.mode, top_k=1)(steps):
        value = _value(measured, step, choice.partition, choice.metric)
        assert value is not None
        return BestEvaluation(step, choice.partition, choice.metric, value, checkpoints / str(step))
    return None


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
    measured = _evaluations(metrics)
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


def _evaluations(metrics: Path) -> list[Measurement]:
    """Return the evaluations in a metrics file, by step."""
    return sorted((m for m in read_metrics(metrics) if m.mode == "evaluate"), key=lambda each: each.step)


def _value(measured: Sequence[Measurement], step: int, partition: str, metric: str) -> float | None:
    values = [m.metrics.get(metric) for m in measured if m.step == step and m.partition == partition]
    return values[-1] if values else None
