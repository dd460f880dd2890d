import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from projects.home.recap.tools.prepare.leaks import auc_of_column, find_implications, find_leaks

RNG = np.random.default_rng(1)
LABELS = RNG.random(2000) < 0.3


def test_a_number_predicts_by_its_rank():
    values = np.round(RNG.normal(size=2000) + LABELS, 1)
    expected = roc_auc_score(LABELS, values)
    assert 0.6 < expected < 0.9
    assert auc_of_column(pa.array(values), LABELS, False) == pytest.approx(expected)
    assert auc_of_column(pa.array(-values), LABELS, False) == pytest.approx(expected)
    assert auc_of_column(pa.array((10 * values).astype("int64")), LABELS, False) == pytest.approx(expected)
    assert auc_of_column(pa.array((10 * values).astype("datetime64[us]")), LABELS, False) == pytest.approx(expected)


def test_a_missing_number_is_lower_than_all_others():
    values = RNG.normal(size=2000)
    missing = RNG.random(2000) < np.where(LABELS, 0.1, 0.9)
    expected = roc_auc_score(LABELS, np.where(missing, -1e9, values))
    assert auc_of_column(pa.array(values, mask=missing), LABELS, False) == pytest.approx(expected)
    assert auc_of_column(pa.array(np.where(missing, np.nan, values)), LABELS, False) == pytest.approx(expected)


def test_a_list_predicts_by_its_length():
    lengths = RNG.integers(0, 3, 2000) + 2 * LABELS
    values = pa.array([["x"] * length for length in lengths.tolist()])
    assert auc_of_column(values, LABELS, True) == pytest.approx(roc_auc_score(LABELS, lengths))


def test_a_category_predicts_rows_by_the_rates_of_others():
    codes = RNG.integers(0, 50, 2000)
    labels = RNG.random(2000) < codes / 50
    values = pa.array([None if code == 7 else f"v{code}" for code in codes.tolist()])
    known = np.random.default_rng(0).random(2000) >= 0.5
    rates = {code: labels[known & (codes == code)].mean() for code in range(50)}
    expected = roc_auc_score(labels[~known], [rates[code] for code in codes[~known].tolist()])
    assert auc_of_column(values, labels, True) == pytest.approx(expected)


def test_values_that_occur_once_predict_nothing():
    values = pa.array([f"v{row}" for row in range(2000)])
    assert auc_of_column(values, LABELS, True) == pytest.approx(0.5)


def test_few_rows_of_a_class_are_not_judged():
    labels = np.arange(2000) >= 1991
    assert auc_of_column(pa.array(np.arange(2000)), labels, False) is None
    assert auc_of_column(pa.array(np.arange(2000)), np.arange(2000) >= 1990, False) == 1.0


def test_leaks_are_found_in_a_file(tmp_path):
    noise = RNG.normal(size=2000)
    table = {
        "noise": noise,
        "number": noise + 100 * LABELS,
        "category": np.where(LABELS, "yes", "no"),
        "label": LABELS.astype("int8"),
        "other": (RNG.random(2000) < 0.5).astype("int8"),
    }
    pq.write_table(pa.table(table), tmp_path / "sample.parquet")
    columns = [("noise", False), ("number", False), ("category", True)]
    leaks = find_leaks(tmp_path / "sample.parquet", columns, ["label", "other"])
    assert [(leak.column, leak.label, leak.auc) for leak in leaks] == [
        ("number", "label", 1.0),
        ("category", "label", 1.0),
    ]


def test_values_that_imply_a_label_are_found(tmp_path):
    clicked = RNG.random(5000) < 0.2
    ordered = clicked & (RNG.random(5000) < 0.3)
    amounts = np.where(ordered, RNG.normal(50, 9, 5000), 0)
    table = {
        "ordered": ordered.astype("int8"),
        "amount": amounts,
        "order_id": pa.array(amounts.astype(str), mask=~ordered),
        "coupons": pa.array([["x"] if each else [] for each in ordered]),
        "status": np.where(ordered, "paid", np.where(RNG.random(5000) < 0.5, "shown", "seen")),
        "likely": np.where(clicked, RNG.random(5000) < 0.9, RNG.random(5000) < 0.1),
        "rare": ordered & (np.cumsum(ordered) <= 40),
        "chance": RNG.integers(0, 50, 5000),
        "constant": np.zeros(5000),
        "label": clicked.astype("int8"),
        "often": (~ordered).astype("int8"),
    }
    pq.write_table(pa.table(table), tmp_path / "sample.parquet")
    found = find_implications(tmp_path / "sample.parquet", list(table)[:-2], ["label", "often"])
    assert {each.column: each.condition for each in found} == {
        "ordered": "is 1",
        "amount": "is not 0",
        "order_id": "is not null",
        "coupons": "is not empty",
        "status": "is paid",
    }
    for each in found:
        assert (each.num_rows, each.num_positives, each.label) == (ordered.sum(), ordered.sum(), "label")
        assert each.base_rate == clicked.mean()
