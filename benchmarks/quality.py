"""Compares prepare and its configuration with gradient boosting and logistic regression of scikit-learn.

    python benchmarks/quality.py [--adult adult.data] [--seeds 3] [--processes 2]

Each table goes through the program prepare, and the Heavy Ranker trains with the configuration that prepare wrote, once
per seed. The test AUROC is that of the epoch with the best AUROC on the validation split. scikit-learn's models fit
both the training and the validation split, see the same columns, and are scored on the same test split:

- HistGradientBoostingClassifier with its defaults. Categories with over 255 values become the 254 most frequent ones
  and another one.
- LogisticRegression on one-hot categories and on logarithms of numbers, standardized. Its C is the best of several on
  the validation split.

Lists become counts of their values: all of them in the logistic regression, and those of lists of at most 64 different
values in the other model. Times become the hour and the day of the week.

The click log comes from projects.home.recap.tools.click_log; its leak is excluded. --adult is a file of the census
income data (docs/adult.md).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
import scipy.sparse as sp  # noqa: E402
import yaml  # noqa: E402
from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from benchmarks.tables import markdown  # noqa: E402
from common.reader.parquet_file import open_parquet  # noqa: E402
from projects.home.recap.tools.click_log import generate  # noqa: E402

MAX_CATEGORIES = 255
MAX_COUNTED_VALUES = 64
C_VALUES = (1.0, 0.1, 0.03, 0.01)
ADULT_COLUMNS = (
    "age,workclass,fnlwgt,education,education_num,marital_status,occupation,relationship,race,sex,capital_gain,"
    "capital_loss,hours_per_week,native_country,income"
)
SPLITS = ("train", "validation", "test")


class Columns(NamedTuple):
    """The rows of all splits as scikit-learn reads them.

    Attributes:
      bounds: first row of each split, and the number of rows.
      numbers: numbers by feature, float64 [rows]; NaN if missing.
      categories: positions of the values by their frequency in training, int64 [rows], by feature.
      lists: counts of the values of lists, [rows, values], by feature.
      labels: labels by name, int64 [rows].
    """

    bounds: list[int]
    numbers: dict[str, Any]
    categories: dict[str, Any]
    lists: dict[str, Any]
    labels: dict[str, Any]


# --- scikit-learn ---


def read_columns(directory: Path, config: dict[str, Any]) -> Columns:
    """Read a prepared table."""
    files = [sorted((directory / split).glob("*.parquet")) for split in SPLITS]
    parts = [pa.concat_tables(open_parquet(file).read() for file in split) for split in files]
    table = pa.concat_tables(parts).combine_chunks()
    columns = Columns([0, *np.cumsum([part.num_rows for part in parts]).tolist()], {}, {}, {}, {})
    for name, feature in config["features"].items():
        values = table[feature.get("column") or name].combine_chunks()
        if feature["kind"] == "timestamp":
            times = values.cast(pa.timestamp("ms"))
            columns.categories[f"{name}.hour"] = positions(pc.hour(times), columns.bounds[1])
            columns.categories[f"{name}.day"] = positions(pc.day_of_week(times), columns.bounds[1])
        elif feature["kind"] == "category":
            columns.categories[name] = positions(values, columns.bounds[1])
        elif feature["kind"] == "categories":
            columns.lists[name] = counts(values)
            lengths = pc.list_value_length(values).cast(pa.float64()).to_numpy(zero_copy_only=False)
            columns.numbers[f"{name}.length"] = lengths
        else:
            columns.numbers[name] = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    for label in config["model"]["tasks"]:
        columns.labels[label] = table[label].to_numpy().astype(np.int64)
    return columns


def positions(values: pa.Array, num_train: int) -> Any:
    """Return the position of each value by its frequency in training; null and new values follow."""
    frequent = pc.value_counts(values.slice(0, num_train)).flatten()
    known = frequent[0].take(pc.sort_indices(frequent[1], sort_keys=[("", "descending")]))
    known = known.filter(pc.is_valid(known))
    found = pc.index_in(values, known)
    return pc.if_else(pc.is_valid(values), pc.fill_null(found, len(known) + 1), len(known)).to_numpy()


def counts(values: pa.Array) -> Any:
    """Return how often each value is in each list."""
    encoded = values.flatten().dictionary_encode()
    ids = encoded.indices.to_numpy(zero_copy_only=False)
    rows = pc.list_parent_indices(values).to_numpy()
    size = (len(values), len(encoded.dictionary))
    return sp.csr_matrix((np.ones(len(rows)), (rows, ids)), shape=size)


def boosting(columns: Columns, label: str) -> float:
    """Return the test AUROC of HistGradientBoostingClassifier."""
    kept = [np.minimum(values, MAX_CATEGORIES - 1) for values in columns.categories.values()]
    counted = [block.toarray() for block in columns.lists.values() if block.shape[1] <= MAX_COUNTED_VALUES]
    inputs = np.column_stack([*columns.numbers.values(), *counted, *kept])
    is_category = np.arange(inputs.shape[1]) >= inputs.shape[1] - len(kept)
    _, _, test, _ = columns.bounds
    model = HistGradientBoostingClassifier(categorical_features=is_category, random_state=0)
    model.fit(inputs[:test], columns.labels[label][:test])
    return auroc(columns.labels[label][test:], model.predict_proba(inputs[test:])[:, 1])


def regression(columns: Columns, label: str) -> float:
    """Return the test AUROC of LogisticRegression."""
    inputs, labels = one_hot(columns), columns.labels[label]
    _, validation, test, _ = columns.bounds

    def score(c: float, fit: slice, predict: slice) -> float:
        model = LogisticRegression(C=c, max_iter=500).fit(inputs[fit], labels[fit])
        return auroc(labels[predict], model.predict_proba(inputs[predict])[:, 1])

    best = max(C_VALUES, key=lambda c: score(c, slice(validation), slice(validation, test)))
    return score(best, slice(test), slice(test, None))


def one_hot(columns: Columns) -> Any:
    """Return all columns as a sparse matrix."""
    blocks = []
    for values in columns.numbers.values():
        logs = np.sign(values) * np.log1p(np.abs(values))
        train = logs[: columns.bounds[1]]
        blocks.append(np.nan_to_num((logs - np.nanmean(train)) / (np.nanstd(train) + 1e-9))[:, None])
        blocks.append(np.isnan(values)[:, None].astype(float))
    for ids in columns.categories.values():
        shape = (len(ids), int(ids.max()) + 1)
        blocks.append(sp.csr_matrix((np.ones(len(ids)), (np.arange(len(ids)), ids)), shape=shape))
    blocks += columns.lists.values()
    return sp.hstack([sp.csr_matrix(block) for block in blocks]).tocsr()


def auroc(labels: Any, scores: Any) -> float:
    return float(roc_auc_score(labels, scores))


# --- The Heavy Ranker ---


def prepare(arguments: list[str], out: Path) -> dict[str, Any]:
    """Run prepare, and return the configuration that it wrote."""
    run(["-m", "projects.home.recap.data.prepare", *arguments, "--out", str(out)])
    config: dict[str, Any] = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    return config


def train(config: Path, save_dir: Path, seed: int, processes: int) -> dict[str, float]:
    """Train, and return the test AUROC of each label after the epoch that was best on the validation split."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    overrides = [f"training.save_dir={save_dir}", f"runtime.seed={seed}"]
    program = ["-m", "projects.home.recap.main", "--config", str(config)]
    run([*launch, *program, *(word for override in overrides for word in ("--set", override))])
    by_step: dict[str, dict[int, dict[str, float]]] = {"validation": {}, "test": {}}
    for line in (save_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["mode"] == "evaluate":
            by_step[record["partition"]][record["step"]] = record["metrics"]
    best = max(by_step["validation"], key=lambda step: by_step["validation"][step]["mean/auroc"])
    return {
        name.removesuffix("/auroc"): value for name, value in by_step["test"][best].items() if name.endswith("/auroc")
    }


def run(arguments: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")


def compare(name: str, arguments: list[str], work: Path, options: argparse.Namespace) -> list[list[str]]:
    """Return a row of the table for each label."""
    out = work / name.replace(" ", "-")
    config = prepare(arguments, out)
    results, seconds = [], []
    for seed in range(options.seeds):
        begin = time.perf_counter()
        results.append(train(out / "config.yaml", work / f"{out.name}-{seed}", seed, options.processes))
        seconds.append(time.perf_counter() - begin)
        print(f"{name}, seed {seed}: {results[-1]}, {seconds[-1]:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
    columns = read_columns(out, config)
    rows = []
    for label in columns.labels:
        ours = [result[label] for result in results]
        rows.append(
            [
                f"{name}, {label}",
                f"{np.mean(ours):.4f} [{min(ours):.4f} to {max(ours):.4f}]",
                f"{boosting(columns, label):.4f}",
                f"{regression(columns, label):.4f}",
                f"{np.mean(seconds):.0f} s",
            ]
        )
    return rows


def main() -> None:
    """Run the comparison, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--adult", type=Path, help="adult.data of the census income data (docs/adult.md)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        log = work / "log.csv.gz"
        generate(log)
        words = f"--input {log} --labels clicked,bought --time ts --kind dwell_seconds unused".split()
        rows += compare("click log", words, work, options)
        if options.adult is not None:
            words = ["--input", str(options.adult), "--columns", ADULT_COLUMNS, "--null_values", "?"]
            rows += compare("census income", [*words, "--label", "over_50k", "income", "==", " >50K"], work, options)
    headers = ["", "prepare and its configuration", "HistGradientBoosting", "logistic regression", "training"]
    print(markdown(rows, headers))  # noqa: T201


if __name__ == "__main__":
    main()
