import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.features.config import NumberFeature
from core.config import load_config_from_yaml
from projects.home.recap.config import RecapConfig
from projects.home.recap.main import main as train
from projects.home.recap.tools.prepare.__main__ import main
from tests.support.click_table import Table, click_table, write_csv, write_parquet

Prepare = Callable[..., str]
TABLE = click_table(600)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("table") / "clicks.csv", TABLE)


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Return a function that runs the program and returns what it prints."""

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, words)])
        assert main() == 0
        return capsys.readouterr().out

    return run


def part(number: int) -> Table:
    """A third of the rows."""
    return {name: values[200 * number : 200 * number + 200] for name, values in TABLE.items()}


def files_below(directory: Path) -> dict[str, bytes]:
    """The bytes of all files, with the directory's name in config.yaml replaced."""
    files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    files["config.yaml"] = (
        files["config.yaml"].replace(str(directory).encode(), b"OUT").replace(directory.name.encode(), b"OUT")
    )
    return files


def test_a_csv_table_becomes_a_directory_that_trains(
    prepare: Prepare, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "clicks"
    report = prepare("--input", table, "--labels", "clicked", "--time", "when", "--out", out)
    assert f"torchrun --standalone --nproc-per-node 2 -m projects.home.recap.main --config {out}/config.yaml" in report
    assert {path.name for path in out.iterdir()} == {"train", "validation", "test", "vocabularies", "config.yaml"}
    run = tmp_path / "run"
    settings = (f"training.save_dir={run}", "training.num_train_steps=20", "training.checkpoint_every_n=10")
    options = [word for setting in settings for word in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", ["main", "--config", str(out / "config.yaml"), *options])
    assert train() == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ends = {line["partition"]: line["metrics"] for line in lines if line["mode"] == "evaluate" and line["step"] == 20}
    assert {name: metrics["examples"] for name, metrics in ends.items()} == {"validation": 60, "test": 60}
    # The configuration was complete: the run's has the same features.
    completed = load_config_from_yaml(RecapConfig, run / "config.yaml")
    assert completed.features == load_config_from_yaml(RecapConfig, out / "config.yaml").features


def test_the_report_says_what_was_chosen_and_what_spoils_models(prepare: Prepare, table: Path, tmp_path: Path) -> None:
    report = prepare("--input", table, "--labels", "clicked", "--out", tmp_path / "out")
    for line in (
        "constant: always 'x'; not used",
        "row_id: a value of its own in each row; not used",
        "leak: alone predicts clicked with an AUC of 1.000: a leak?",
        "divide the rows by time: --time when",
        "only 47",
        "The rows were divided by a hash of the row (80%, 10%, 10%), so that equal rows are in one split.",
    ):
        assert line in report
    features = load_config_from_yaml(RecapConfig, tmp_path / "out/config.yaml").features
    assert features is not None
    assert list(features) == ["when", "user_id", "price", "color", "leak", "stars"]


@pytest.mark.parametrize("options", [("--time", "when"), ("--group", "user_id"), ()], ids=str)
def test_the_same_rows_give_the_same_bytes(
    prepare: Prepare, table: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    inputs = {
        "csv": [table],
        "gz": [write_csv(tmp_path / "clicks.csv.gz", TABLE)],
        "parquet": [write_parquet(tmp_path / "clicks.parquet", TABLE)],
        "parts": [write_parquet(tmp_path / f"{n}.pq", part(n)) for n in range(3)],
    }
    found = []
    for threads, (name, files) in enumerate(inputs.items(), start=1):
        out = tmp_path / f"from-{name}"
        prepare("--input", *files, "--labels", "clicked", *options, "--out", out, "--threads", threads)
        found.append(files_below(out))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, content in other.items():
            assert content == found[0][name], name


def test_a_comparison_makes_a_label_and_its_column_is_no_feature(prepare: Prepare, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = prepare("--input", table, "--label", "liked", "stars", ">=", 4, "--out", out, "--split", "0.6,0.2,0.2")
    assert "the label liked is computed from it" in report
    rows = [row for split in ("train", "validation", "test") for row in pq.read_table(out / split).to_pylist()]
    assert len(rows) == 600
    assert all(row["liked"] == (row["stars"] >= 4) for row in rows)
    features = load_config_from_yaml(RecapConfig, out / "config.yaml").features
    assert features is not None
    assert "stars" not in features
    assert "liked" not in features


def test_a_later_table_can_have_the_same_features(prepare: Prepare, table: Path, tmp_path: Path) -> None:
    first, later = tmp_path / "first", tmp_path / "later"
    prepare("--input", table, "--labels", "clicked", "--time", "when", "--out", first)
    new = write_csv(tmp_path / "new.csv", click_table(600, seed=1) | {"new": list(range(600))})
    options = ("--features", first / "config.yaml", "--features_only")
    prepare("--input", new, "--labels", "clicked", "--time", "when", "--out", later, *options)
    configs = [load_config_from_yaml(RecapConfig, out / "config.yaml") for out in (first, later)]
    assert configs[0].features == configs[1].features
    assert list((later / "vocabularies").iterdir()) == []


def test_a_configured_feature_overrides_the_inferred_one(prepare: Prepare, table: Path, tmp_path: Path) -> None:
    (tmp_path / "features.yaml").write_text("features:\n  user: {kind: category, column: user_id, hash_buckets: 9}\n")
    prepare(
        "--input", table, "--labels", "clicked", "--features", tmp_path / "features.yaml", "--out", tmp_path / "out"
    )
    features = load_config_from_yaml(RecapConfig, tmp_path / "out/config.yaml").features
    assert features is not None
    assert features["user"].model_dump(exclude_defaults=True) == {
        "kind": "category",
        "column": "user_id",
        "hash_buckets": 9,
    }
    assert "user_id" not in features
    assert "price" in features


def test_weights_are_in_the_configuration_and_no_feature(prepare: Prepare, table: Path, tmp_path: Path) -> None:
    prepare("--input", table, "--labels", "clicked", "--weight", "stars", "--out", tmp_path / "out")
    config = load_config_from_yaml(RecapConfig, tmp_path / "out/config.yaml")
    assert {data.weight_column for data in config.data_sets().values()} == {"stars"}
    assert config.features is not None
    assert "stars" not in config.features


def test_groups_of_metrics_are_in_the_configuration(prepare: Prepare, table: Path, tmp_path: Path) -> None:
    prepare("--input", table, "--labels", "clicked", "--group", "user_id", "--time", "when", "--out", tmp_path / "out")
    config = load_config_from_yaml(RecapConfig, tmp_path / "out/config.yaml")
    assert config.metrics.group_by == "user_id"
    assert config.features is not None
    assert "user_id" in config.features


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), "there is nothing to predict"),
        (("--labels", "stars"), "Make a label of them, such as --label stars_is_high stars '>=' 5"),
        (("--labels", "clickd"), "there is no column 'clickd'"),
        (("--labels", "clicked", "--time", "color"), "--time"),
        (("--labels", "clicked", "--group", "nobody"), "'nobody'"),
        (("--labels", "clicked", "--split", "0.5,0.5"), "is not three positive numbers that sum to 1"),
        (("--labels", "clicked", "--features_only"), "--features_only needs --features"),
        (("--labels", "clicked,"), "has an empty name"),
        (("--labels", "clicked", "--kind", "color", "hue"), "--kind color hue: the kinds are number, numbers,"),
        (("--labels", "clicked", "--weight", "price"), "the weight price is missing in"),
    ],
)
def test_errors_leave_nothing_behind(
    prepare: Prepare, table: Path, tmp_path: Path, options: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(UserError) as caught:
        prepare("--input", table, *options, "--out", tmp_path / "deep/out")
    assert problem in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_rows_without_a_label_are_refused_unless_they_are_to_be_dropped(prepare: Prepare, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "table.csv", TABLE | {"clicked": ["", "", *TABLE["clicked"][2:]]})
    with pytest.raises(UserError, match=r"the label clicked is missing in 2 of 600 rows.*--drop_incomplete"):
        prepare("--input", table, "--labels", "clicked", "--out", tmp_path / "out")
    report = prepare("--input", table, "--labels", "clicked", "--drop_incomplete", "--out", tmp_path / "out")
    assert "Rows were dropped: the label clicked is missing in 2 of 600 rows." in report
    assert sum(pq.read_table(tmp_path / "out" / name).num_rows for name in ("train", "validation", "test")) == 598


def test_nan_in_parquet_is_missing(prepare: Prepare, tmp_path: Path) -> None:
    nan = float("nan")
    columns = {
        "number": [0.5, nan, 1.5, 2.5],
        "item_id": [1.0, nan, 3.0, 3.0],
        "clicked": [0.0, 1.0, 1.0, nan],
    }
    table = {name: values * 50 for name, values in columns.items()} | {"row": list(range(200))}
    pq.write_table(pa.table(table), tmp_path / "nan.parquet")
    options = ("--input", tmp_path / "nan.parquet", "--labels", "clicked", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="the label clicked is missing in 50 of 200 rows"):
        prepare(*options)
    prepare(*options, "--drop_incomplete")
    features = load_config_from_yaml(RecapConfig, tmp_path / "out/config.yaml").features
    assert features is not None
    assert isinstance(features["number"], NumberFeature)
    assert features["number"].indicator
    written = pq.read_table(tmp_path / "out/vocabularies/item_id.parquet").column("value").to_pylist()
    assert sorted(written) == [1, 3]


def test_an_existing_directory_is_never_overwritten(prepare: Prepare, table: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    with pytest.raises(UserError, match="already exists and is not empty"):
        prepare("--input", table, "--labels", "clicked", "--out", tmp_path / "out")


def test_hidden_files_are_reported_once(prepare: Prepare, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_csv(tmp_path / "clicks.csv", TABLE)
    write_csv(tmp_path / "_clicks.csv", TABLE)
    prepare("--input", tmp_path / "*.csv", "--labels", "clicked", "--out", tmp_path / "out")
    assert len([record for record in caplog.records if "_clicks.csv" in record.getMessage()]) == 1


def test_features_whose_parts_have_the_same_name_are_an_error(prepare: Prepare, tmp_path: Path) -> None:
    numbers = ["" if row % 7 == 0 else f"{row}.5" for row in range(400)]
    rows = [f"{number},{row % 3 == 0:d},{row % 2}\n" for row, number in enumerate(numbers)]
    file = tmp_path / "table.csv"
    file.write_text("".join(["x,x.missing,clicked\n", *rows]))
    arguments = ("--input", file, "--labels", "clicked", "--out", tmp_path / "out")
    with pytest.raises(UserError, match=r"x and x\.missing .*--kind COLUMN unused"):
        prepare(*arguments)
    assert not (tmp_path / "out").exists()
    assert "config.yaml" in prepare(*arguments, "--kind", "x.missing", "unused")
