import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from common.errors import UserError
from projects.home.recap.tools.click_log import best_auc, generate, main
from projects.home.recap.tools.synthetic.click_population import DAYS, MAX_LAST_ITEMS
from projects.home.recap.tools.synthetic.clicks import CHUNK_ROWS, LABELS, LEAK, SCHEMA, draw_clicks

DAY = np.timedelta64(1, "D")


@pytest.fixture(scope="module")
def drawn():
    rows, probabilities = zip(*draw_clicks(0, 30_000), strict=True)
    return pa.concat_tables(rows).combine_chunks(), np.concatenate(probabilities)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_bytes(tmp_path):
    for suffix in ("csv", "csv.gz", "parquet"):
        for name, seed in (("a", 3), ("b", 3), ("c", 4)):
            generate(tmp_path / f"{name}.{suffix}", seed, 300)
        first, same, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "abc")
        assert first == same
        assert first != other


def test_all_formats_have_the_same_rows(tmp_path):
    for suffix in ("csv", "csv.gz", "parquet"):
        generate(tmp_path / f"log.{suffix}", 0, 500)
    expected = pq.read_table(tmp_path / "log.parquet")
    assert expected.equals(pa.concat_tables(rows for rows, _ in draw_clicks(0, 500)))
    types = {field.name: pa.string() if pa.types.is_list(field.type) else field.type for field in SCHEMA}
    for name in ("log.csv", "log.csv.gz"):
        options = pyarrow.csv.ConvertOptions(
            column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False
        )
        rows = pyarrow.csv.read_csv(tmp_path / name, convert_options=options).to_pylist()
        for row, other in zip(rows, expected.to_pylist(), strict=True):
            for lists in ("last_items", "last_categories"):
                row[lists] = None if row[lists] is None else json.loads(row[lists])
            assert row == other


def test_rows_are_in_order_of_time_over_several_days(drawn):
    times = drawn[0]["ts"].to_numpy()
    assert (np.diff(times) >= np.timedelta64(0)).all()
    assert len(np.unique(times.astype("datetime64[D]"))) == DAYS


def test_labels_are_drawn_from_the_probabilities(drawn):
    rows, probabilities = drawn
    for index, label in enumerate(LABELS):
        values, expected = rows[label].to_numpy(), probabilities[:, index]
        assert set(np.unique(values)) == {0, 1}
        spread = np.sqrt((expected * (1.0 - expected)).sum())
        assert abs(values.sum() - expected.sum()) < 4.5 * spread
        likely = expected > np.median(expected)
        assert abs(values[likely].sum() - expected[likely].sum()) < 4.5 * spread
    assert not (rows["bought"].to_numpy() > rows["clicked"].to_numpy()).any()


def test_the_log_has_a_leak_a_constant_and_an_id_of_each_row(drawn):
    rows, _ = drawn
    assert roc_auc_score(rows["clicked"], rows[LEAK]) > 0.98
    assert pc.count_distinct(rows["site"]).as_py() == 1
    assert pc.count_distinct(rows["impression_id"]).as_py() == rows.num_rows


def test_ids_are_heavy_tailed_and_some_are_new_on_the_last_day(drawn):
    rows, _ = drawn
    is_last = rows["ts"].to_numpy() >= rows["ts"].to_numpy().max() - DAY
    for name, share_of_top in (("user_id", 0.25), ("item_id", 0.25), ("brand", 0.25)):
        values = np.array(rows[name].fill_null("").to_pylist() if name == "brand" else rows[name].to_pylist())
        counts = np.sort(np.unique(values, return_counts=True)[1])[::-1]
        assert counts[: len(counts) // 20].sum() > share_of_top * len(values)
        if name != "brand":
            assert 0.02 < np.mean(~np.isin(values[is_last], values[~is_last])) < 0.3
    assert rows["item_id"].to_numpy().min() > 2**53


def test_columns_have_nulls_zeros_and_heavy_tails(drawn):
    rows, _ = drawn
    with_nulls = {name for name in rows.column_names if rows[name].null_count}
    assert with_nulls == {
        *("country", "device", "user_age", "user_visits_7d", "user_top_category", "last_items", "last_categories"),
        *("brand", "item_age_hours"),
    }
    for name in ("user_spend_30d", "discount", "friends"):
        assert np.mean(rows[name].to_numpy() == 0) > 0.5
    for name in ("user_spend_30d", "price", "item_views_24h"):
        values = rows[name].to_numpy()
        assert values.mean() > 1.3 * np.median(values)
    assert all(len(region) == 3 for region in rows["region"].to_pylist())
    assert "012" in rows["region"].to_pylist()


def test_last_items_are_the_clicks_before_and_their_categories(drawn):
    rows = drawn[0].select(["user_id", "item_id", "category", "last_items", "last_categories", "clicked"]).to_pylist()
    category_of = {row["item_id"]: row["category"] for row in rows}
    histories: dict[str, list[int]] = {}
    lengths = set()
    for first in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[first : first + CHUNK_ROWS]
        for row in chunk:
            lengths.add(None if row["last_items"] is None else len(row["last_items"]))
            history = histories.setdefault(row["user_id"], row["last_items"] or [])
            assert (row["last_items"] or []) == history
            known = [
                (category, category_of[item])
                for item, category in zip(history, row["last_categories"] or [], strict=True)
                if item in category_of
            ]
            assert all(category == expected for category, expected in known)
        for row in chunk:
            if row["clicked"]:
                histories[row["user_id"]] = [*histories[row["user_id"]], row["item_id"]][-MAX_LAST_ITEMS:]
    assert {None, 0, 1, MAX_LAST_ITEMS} <= lengths


@pytest.mark.parametrize("num_rows", [1, 2, 50])
def test_a_few_rows_are_enough(num_rows):
    assert sum(rows.num_rows for rows, _ in draw_clicks(0, num_rows)) == num_rows


def test_the_best_auc_is_that_of_scikit_learn(drawn):
    rows, probabilities = drawn
    expected = roc_auc_score(rows["clicked"], probabilities[:, 0])
    assert best_auc(rows["clicked"].to_numpy() == 1, probabilities[:, 0]) == pytest.approx(expected)
    assert np.isnan(best_auc(np.zeros(3, bool), np.arange(3.0)))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "projects.home.recap.tools.click_log", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_reports_the_base_rates_and_keeps_an_existing_file(tmp_path):
    done = run("--out", tmp_path / "new" / "log.csv", "--num_examples", 400)
    assert done.returncode == 0, done.stderr
    assert "bought" in done.stdout
    assert "log.csv: 400 rows" in done.stdout
    before = (tmp_path / "new" / "log.csv").read_bytes()
    again = run("--out", tmp_path / "new" / "log.csv", "--num_examples", 10)
    assert (again.returncode, again.stdout) == (2, "")
    assert "already exists" in again.stderr
    assert (tmp_path / "new" / "log.csv").read_bytes() == before
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["log.csv"]


def test_a_failure_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("projects.home.recap.tools.click_log.draw_clicks", lambda *_: iter([(pa.table({}), None)]))
    with pytest.raises((KeyError, ValueError, AttributeError)):
        generate(tmp_path / "log.csv", 0, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["log.tsv", "log", "file/log.csv", "x" * 256 + ".csv", "\0.csv"])
def test_an_impossible_file_is_a_user_error(tmp_path, monkeypatch, out):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["click_log", "--out", f"{tmp_path}/{out}", "--num_examples", "5"])
    with pytest.raises(UserError):
        main()
    assert [path.name for path in Path(tmp_path).iterdir()] == ["file"]
