"""Compares the index of `projects.twhin.neighbors` with exact search, on embeddings of a million users.

    python benchmarks/neighbors.py --work /tmp/neighbors

The first run generates a graph, trains TwHIN on it with two processes and exports the embeddings. Prints, for each
comparator, the time to build the index, and the recall@10 and speed of both settings as ratios to two exact searches:
that of the project in float64, and faiss's IndexFlat in float32. All search batches, with two threads, in turns.
Figures are the median [smallest to largest] of the rounds.
"""

import argparse
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.update(OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2")  # read when numpy and faiss are imported

import faiss  # noqa: E402
import numpy as np  # noqa: E402
import yaml  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.tables import markdown, spread  # noqa: E402
from common.files.embedding_files import EmbeddingFile  # noqa: E402
from projects.twhin.model.config import ComparatorName  # noqa: E402
from projects.twhin.neighbors.exact import nearest  # noqa: E402
from projects.twhin.neighbors.index import NeighborIndex, build_index  # noqa: E402
from projects.twhin.neighbors.loaded import LoadedEmbeddings, load_embeddings  # noqa: E402
from projects.twhin.neighbors.options import RECALLS  # noqa: E402

Rows = NDArray[np.int64]

K = 10
USERS, TWEETS, EDGES = 1_000_000, 500_000, 15_000_000


def run(*command: str) -> None:
    """Run a program of this project."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, env=environment)


def make_embeddings(work: Path, dim: int) -> Path:
    """Return the file of the users' embeddings; train them if there is none."""
    exported = work / f"export-{dim}"
    if not exported.exists():
        if not (work / "graph").exists():
            sizes = ("--users", str(USERS), "--tweets", str(TWEETS), "--edges", str(EDGES))
            run("projects.twhin.tools.generate", "--out", str(work / "graph"), *sizes)
        config = yaml.safe_load((ROOT / "projects/twhin/configs/local.yaml").read_text())
        config["training"] = {
            "save_dir": str(work / f"run-{dim}"),
            "num_train_steps": 1800,
            "num_epochs": 10,
            "checkpoint_every_n": 1800,
        }
        for table, rows in zip(config["model"]["embeddings"]["tables"], (USERS, TWEETS), strict=True):
            table["vocab"] = str(work / "graph/vocabulary" / f"{table['name']}.parquet")
            table |= {"num_embeddings": rows, "embedding_dim": dim}
            table["optimizer"]["learning_rate"]["linear_ramp_to_cosine"]["final_num_steps"] = 1800
        config["train_data"] |= {"data_root": str(work / "graph/train"), "global_batch_size": 24_000}
        del config["validation_data"]
        (work / "config.yaml").write_text(yaml.safe_dump(config))
        launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "projects.twhin.main")
        run(*launch, "--config", str(work / "config.yaml"))
        run("projects.twhin.export", "--checkpoint", str(work / f"run-{dim}"), "--out", str(exported))
    return exported / "user.parquet"


def searches_of(
    file: EmbeddingFile, table: LoadedEmbeddings, index: NeighborIndex
) -> dict[str, Callable[[Rows], NDArray[np.int64]]]:
    """Return searches by name. They take rows of the table and return the positions of their neighbors."""
    comparator = index.facts.comparator
    flat = faiss.IndexFlat(file.dim, faiss.METRIC_L2 if comparator == "l2" else faiss.METRIC_INNER_PRODUCT)
    vectors = table.values
    if comparator == "cos":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    flat.add(vectors)
    searches: dict[str, Callable[[Rows], NDArray[np.int64]]] = {
        "exact": lambda rows: nearest(file, table.values[rows], rows, K, comparator).positions,
        "IndexFlat": lambda rows: flat.search(vectors[rows], K + 1)[1],
    }
    for recall in RECALLS:
        searches[f"index, {recall}"] = functools.partial(
            lambda rows, recall: index.search(table.values[rows], rows, K, recall).positions, recall=recall
        )
    return searches


def measure(file: EmbeddingFile, comparator: ComparatorName, rounds: int, queries: int) -> list[list[str]]:
    """Return the rows of the table of figures for a comparator."""
    table = load_embeddings(file)
    start = time.perf_counter()
    index = build_index(table, comparator)
    built = time.perf_counter() - start
    rows = np.random.default_rng(1).choice(file.num_rows, queries, replace=False)
    # Exact searches take long. IndexFlat is several times slower in batches of less than 2,000 queries per thread.
    sizes = {"exact": queries // 20, "IndexFlat": queries // 5}
    seconds: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    positions: dict[str, NDArray[np.int64]] = {}
    searches = searches_of(file, table, index)
    for _ in range(rounds):
        for name, search in searches.items():
            chosen = rows[: sizes.get(name, queries)]
            start, start_of_processor = time.perf_counter(), time.process_time()
            found = search(chosen)
            seconds.setdefault(name, []).append((time.perf_counter() - start) / len(chosen))
            processor.setdefault(name, []).append((time.process_time() - start_of_processor) / len(chosen))
            positions[name] = found[: sizes["exact"], :K]
    figures = []
    for name, times in seconds.items():
        pairs = zip(positions["exact"], positions[name], strict=True)
        recall = sum(len(np.intersect1d(exact, some)) for exact, some in pairs) / positions["exact"].size
        ratios = [
            spread([a / b for a, b in zip(seconds[reference], times, strict=True)], 1)
            for reference in ("exact", "IndexFlat")
        ]
        is_index = name.startswith("index")
        shown = f"{recall:.4f}" if is_index else ""
        costs = [spread(times, 0, 1e6), spread(processor[name], 0, 1e6)]
        figures.append([comparator, name, shown, *costs, *ratios, f"{built:.0f}" if is_index else ""])
    return figures


def main() -> None:
    """Print a table of all comparators."""
    parser = argparse.ArgumentParser(description="Compares the index of neighbors with exact search.")
    parser.add_argument("--work", type=Path, required=True, help="directory for the graph, the run and the export")
    parser.add_argument("--dim", type=int, default=64, help="dimension of the embeddings (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of measurements (default: %(default)s)")
    parser.add_argument(
        "--queries", type=int, default=20_000, help="queries in a batch of the index, 20 or more (default: %(default)s)"
    )
    parser.add_argument("--comparators", nargs="+", default=["cos", "dot", "l2"], choices=["cos", "dot", "l2"])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    faiss.omp_set_num_threads(2)
    file = EmbeddingFile(make_embeddings(options.work.resolve(), options.dim))
    rows = [
        row for comparator in options.comparators for row in measure(file, comparator, options.rounds, options.queries)
    ]
    headers = [
        "comparator",
        "search",
        "recall@10",
        "µs/query",
        "processor µs/query",
        "x exact",
        "x IndexFlat",
        "build, s",
    ]
    sys.stdout.write(f"{file.num_rows:,} embeddings of dimension {file.dim}\n\n{markdown(rows, headers)}\n")


if __name__ == "__main__":
    main()
