import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from common.errors import UserError
from common.reader.vectors import with_lists
from projects.home.recap.data.parquet import EMBEDDINGS, TASKS, Widths
from projects.home.recap.tools.generate import PRESETS, Preset, generate, main, report
from projects.home.recap.tools.synthetic.teacher import teacher_probabilities

BASE_RATES = (0.1, 0.015, 0.03, 0.003, 0.008, 0.012, 0.002, 0.0001, 0.015, 0.06)
SMALL = Preset(Widths(48, 16, 4, 16), (300, 100), row_group_size=64, rows_per_file=128)


def read(path: Path) -> dict[str, Any]:
    """Read the columns of a file or directory by name, vectors as [rows, width]."""
    table = with_lists(pq.read_table(path)).combine_chunks()
    arrays = {}
    for name in table.column_names:
        column = table.column(name).chunk(0)
        nested = pa.types.is_fixed_size_list(column.type)
        arrays[name] = column.flatten().to_numpy().reshape(len(column), -1) if nested else column.to_numpy()
    return arrays


def contents(directory: Path) -> dict[str, bytes]:
    """Return the bytes of all files by relative path."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def rce(labels: Any, probabilities: Any) -> float:
    """Return the relative cross entropy of float64 probabilities against the constant base rate, in percent."""

    def cross_entropy(p: Any) -> Any:
        return -np.mean(np.where(labels == 1, np.log(p), np.log(1.0 - p)))

    constant = np.full(len(labels), labels.mean())
    return float(100.0 * (1.0 - cross_entropy(probabilities) / cross_entropy(constant)))


@pytest.fixture(scope="module")
def default_data(tmp_path_factory):
    out = tmp_path_factory.mktemp("recap") / "data"
    tallies = generate(out, PRESETS["default"], seed=0, num_examples=(60_000, 20_000))
    return out, tallies


def test_generate_writes_the_files_and_columns_of_the_preset(tmp_path):
    generate(tmp_path / "data", SMALL, seed=0, num_examples=(300, 100))
    files = contents(tmp_path / "data")
    assert sorted(files) == [
        "schema.json",
        "train/part-00000.parquet",
        "train/part-00001.parquet",
        "train/part-00002.parquet",
        "validation/part-00000.parquet",
    ]
    for name, length in (("train", 300), ("validation", 100)):
        arrays = read(tmp_path / "data" / name)
        assert {len(array) for array in arrays.values()} == {length}
        assert len(np.unique(arrays["meta__tweet_id"])) == length
    schema = {entry["feature_name"]: entry for entry in json.loads(files["schema.json"])["schema"]}
    labels = [name for name in arrays if name in TASKS]
    assert tuple(labels) == TASKS
    assert set(arrays) == set(schema) | {f"teacher.{task}" for task in TASKS}
    assert arrays["continuous"].shape == (100, 48)
    assert arrays["continuous"].dtype == np.float32
    assert set(np.unique(arrays["binary"])) == {0, 1}
    metadata = pq.read_metadata(tmp_path / "data" / "train" / "part-00000.parquet")
    assert [metadata.row_group(index).num_rows for index in range(2)] == [64, 64]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate(tmp_path / name, SMALL, seed, num_examples=(300, 100))
    first, same, other = (contents(tmp_path / name) for name in "abc")
    assert first == same
    assert all(first[name] != other[name] for name in first if name != "schema.json")


def test_fewer_rows_are_a_prefix_of_the_same_rows(tmp_path):
    generate(tmp_path / "many", SMALL, seed=0, num_examples=(300, 100))
    generate(tmp_path / "few", SMALL, seed=0, num_examples=(200, 7))
    many, few = read(tmp_path / "many" / "train"), read(tmp_path / "few" / "train")
    for name, values in few.items():
        np.testing.assert_array_equal(values, many[name][:200])


def test_splits_and_files_differ(tmp_path):
    generate(tmp_path / "data", SMALL, seed=0, num_examples=(256, 128))
    first, second = (read(tmp_path / "data" / "train" / f"part-0000{index}.parquet") for index in (0, 1))
    validation = read(tmp_path / "data" / "validation")
    assert not np.array_equal(first["continuous"], second["continuous"])
    assert not np.array_equal(first["continuous"], validation["continuous"])


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_teacher_is_a_function_of_the_stored_columns(default_data, split):
    arrays = read(default_data[0] / split)
    features = {name: arrays[name] for name in ("continuous", "binary", *EMBEDDINGS)}
    stored = np.stack([arrays[f"teacher.{task}"] for task in TASKS], axis=1)
    np.testing.assert_array_equal(teacher_probabilities(features), stored)


def test_the_probabilities_survive_the_truncation_of_production(tmp_path):
    generate(tmp_path / "data", PRESETS["production"], seed=0, num_examples=(300, 100))
    arrays = read(tmp_path / "data" / "train")
    assert [arrays[name].shape[1] for name in ("continuous", "binary", "discrete")] == [6000, 512, 320]
    assert [arrays[name].shape[1] for name in EMBEDDINGS] == [200, 200, 200]
    features = {name: arrays[name] for name in EMBEDDINGS}
    features |= {"continuous": arrays["continuous"][:, :2117], "binary": arrays["binary"][:, :59]}
    stored = np.stack([arrays[f"teacher.{task}"] for task in TASKS], axis=1)
    np.testing.assert_array_equal(teacher_probabilities(features), stored)
    assert np.count_nonzero(arrays["continuous"][:, 48:]) < 0.05 * arrays["continuous"].size


def test_labels_are_drawn_from_the_teachers_probabilities(default_data):
    arrays = read(default_data[0] / "train")
    for task, base_rate in zip(TASKS, BASE_RATES, strict=True):
        probabilities = arrays[f"teacher.{task}"].astype(np.float64)
        spread = np.sqrt(np.sum(probabilities * (1.0 - probabilities)))
        assert abs(arrays[task].sum() - probabilities.sum()) < 4.5 * spread
        assert probabilities.mean() == pytest.approx(base_rate, rel=0.2)


def test_counts_are_heavy_tailed_and_some_authors_are_much_more_popular(default_data):
    arrays = read(default_data[0] / "train")
    followers = arrays["continuous"][:, 0]
    assert np.mean(followers) > 3.0 * np.median(followers)
    views = np.sort(np.unique(arrays["meta__author_id"], return_counts=True)[1])[::-1]
    assert views[: len(views) // 10].sum() > 0.25 * views.sum()


def test_the_reported_figures_match_the_files(default_data):
    out, tallies = default_data
    for split, num_rows in (("train", 60_000), ("validation", 20_000)):
        arrays = read(out / split)
        assert tallies[split].num_rows == num_rows
        for index, task in enumerate(TASKS):
            assert tallies[split].positives[index] == arrays[task].sum()
            if arrays[task].sum() > 0:
                expected = rce(arrays[task], arrays[f"teacher.{task}"].astype(np.float64))
                assert tallies[split].teacher_rce()[index] == pytest.approx(expected)
    assert "60000 train and 20000 validation rows in 3 files" in report(out, tallies)


def test_logistic_regression_reaches_at_most_60_percent_of_the_teacher(default_data):
    def features(arrays: dict[str, Any]) -> Any:
        logs = np.sign(arrays["continuous"]) * np.log1p(np.abs(arrays["continuous"]))
        return np.concatenate([logs, arrays["binary"], *(arrays[name] for name in EMBEDDINGS)], axis=1)

    train, validation = (read(default_data[0] / split) for split in ("train", "validation"))
    task = "recap.engagement.is_favorited"
    inputs = features(train)
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
    model = LogisticRegression(max_iter=300).fit((inputs - mean) / deviation, train[task])
    learned = model.predict_proba((features(validation) - mean) / deviation)[:, 1]
    share = rce(validation[task], learned) / rce(validation[task], validation[f"teacher.{task}"].astype(np.float64))
    assert 0.2 < share <= 0.6


def test_an_existing_directory_is_refused_and_unchanged(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"^--out .*/data\b.*exists"):
        generate(tmp_path / "data", SMALL, seed=0, num_examples=(10, 10))
    assert contents(tmp_path) == {"data/mine.txt": b"mine"}
    with pytest.raises(UserError, match=r"^--out .*/data/mine\.txt\b.*exists"):
        generate(tmp_path / "data" / "mine.txt", SMALL, seed=0, num_examples=(10, 10))


def test_an_empty_directory_is_filled_and_parents_are_created(tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new" / "data"):
        generate(out, SMALL, seed=0, num_examples=(10, 10))
        assert sorted(path.name for path in out.iterdir()) == ["schema.json", "train", "validation"]
        assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_a_failure_leaves_no_files(tmp_path):
    impossible = SMALL._replace(widths=Widths(48, 16, 4, 3))
    with pytest.raises(ValueError, match="negative"):
        generate(tmp_path / "data", impossible, seed=0, num_examples=(10, 10))
    assert list(tmp_path.iterdir()) == []


def run(*arguments: object, threads: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "projects.home.recap.tools.generate", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)},
        timeout=120,
    )


def test_the_command_writes_the_same_bytes_with_any_number_of_threads(tmp_path):
    sizes = ("--num_train_examples", 500, "--num_validation_examples", 200)
    first = run("--out", tmp_path / "a", *sizes, threads=1)
    assert first.returncode == 0, first.stderr
    assert "500 train and 200 validation rows" in first.stdout
    assert "train: 500 of 500 rows" in first.stderr
    assert run("--out", tmp_path / "b", *sizes, threads=2).returncode == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")

    repeated = run("--out", tmp_path / "a", *sizes)
    assert repeated.returncode == 2
    assert f"--out {tmp_path}/a" in repeated.stderr
    assert "exists" in repeated.stderr
    assert "Traceback" not in repeated.stderr
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_output_directory_that_cannot_be_created_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["main", "--out", str(tmp_path / "file" / "data"), "--num_train_examples", "1"])
    with pytest.raises(UserError, match=r"--out .*(Not a directory|File exists)"):
        main()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--out", "x", "--preset", "huge"],
        ["--out", "x", "--seed", "-1"],
        ["--out", "x", "--seed", str(2**32)],
        ["--out", "x", "--num_train_examples", "0"],
        ["--out", "x", "--num_validation_examples", "many"],
    ],
)
def test_invalid_arguments_are_user_errors(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main", *arguments])
    with pytest.raises(UserError, match=r"usage: "):
        main()
