"""Formats what the program prints at its end: metrics, the files of the results, and what to do next."""

from collections.abc import Mapping, Sequence

from common.tracking.measurement import Measurement
from projects.home.recap.metrics import metrics_table
from projects.home.recap.predict.directory import PredictionDirectory
from projects.home.recap.predict.manifest import NAME, read_manifest


def report(directory: PredictionDirectory) -> str:
    """Return the report about the complete predictions in a directory."""
    found = read_manifest(directory.path)
    assert found is not None
    checkpoint = found["checkpoint"]
    lines = [""]
    if (metrics := found.get("metrics")) is not None:
        lines += [f"{metrics['examples']:,} examples after step {checkpoint['step']}"]
        lines += [metrics_table(Measurement(checkpoint["step"], "evaluate", None, metrics, {})), ""]
    best, to_read = found.get("top_k"), directory.predictions
    lines.append(f"predictions    {found['rows']:,} rows in {found['files']:,} file(s), {directory.predictions}")
    if best is not None:
        title, to_read = f"top {found['options']['top_k']['k']}", directory.top_k
        lines.append(f"{title:<15}{best['rows']:,} rows in {best['files']:,} file(s), {directory.top_k}")
    lines += [
        f"columns        {', '.join(_columns(found['columns']))}",
        f"ranker         {checkpoint['path']}, after step {checkpoint['step']}",
        f"manifest       {directory.path / NAME}",
        "",
        f'To read them: pandas.read_parquet("{to_read}")',
    ]
    return "\n".join(lines) + "\n"


def _columns(columns: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names of columns, with one name for those of all tasks."""
    names = (
        column["name"].removesuffix(column["task"]) + "<task>" if "task" in column else column["name"]
        for column in columns
    )
    return list(dict.fromkeys(names))
