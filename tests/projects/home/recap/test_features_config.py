"""Messages about errors in the top-level features, each a change of a small configuration."""

import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from core.config import load_config_from_yaml
from projects.home.recap.config import RecapConfig
from tests.support.feature_table import config, write_config

FEATURES: dict[str, Any] = {
    "age": {"kind": "number", "buckets": 4},
    "user.country": {"kind": "category", "hash_buckets": 9},
    "seen": {"kind": "timestamp", "age": {"before": "served"}},
    "both": {"kind": "category", "num_values": 3, "table": "item"},
}
RECTIFY = "served_timestamp_field: s, impressed_timestamp_field: i"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.yaml", config(tmp_path, tmp_path / "run", FEATURES))


@pytest.mark.parametrize(
    ("override", "key_path", "message"),
    [
        # Kinds.
        (
            "features.age.kind=nmber",
            "features.age.kind",
            r"'nmber' is invalid: .*'number', 'numbers', .* or 'embedding'",
        ),
        ("features.age.kind=1", "features.age.kind", "1 is invalid: .*'number', "),
        ("features.age.kind=null", "features.age.kind", "null is invalid: .*'number', "),
        ("features.x={column: a}", "features.x.kind", "missing; it selects what else is allowed here$"),
        ("features.x={knd: number}", "features.x.kind", "missing; .*Rename 'knd'"),
        ("features.x=number", "features.x", "'number' is invalid: .*a mapping"),
        ("features.x=null", "features.x", "null is invalid: .*a mapping"),
        ("features={}", "features", "at least 1 item"),
        ("features=[]", "features", "a list is invalid"),
        ("features={' ': {kind: number}}", "features", "must not be blank"),
        # Keys and values of a kind.
        ("features.age.bucket=3", "features.age.bucket", "unknown key; did you mean 'buckets'"),
        ("features.age.number=3", "features.age.number", "unknown key; allowed here: "),
        ("features.age.hash_buckets=3", "features.age.hash_buckets", "unknown key"),
        ("features.age.buckets=1", "features.age.buckets", "1 is invalid: .*greater than or equal to 2"),
        ("features.age.buckets=257", "features.age.buckets", "257 is invalid: .*256"),
        ("features.age.missing=.nan", "features.age.missing", "finite"),
        ("features.age.edges=[1, 2, 2]", "features.age", "ascending order, and differ"),
        ("features.age.edges=[1, 1.00000000001]", "features.age", "differ in float32"),
        ("features.age.edges=[-3e38, 3e38]", "features.age", "at most 3.4e.38"),
        ("features.age.edges=[1, 2, 3, 4, 5, 6]", "features.age", "6 edges make more than 4 buckets"),
        ("features.seen.age.befor=x", "features.seen.age.befor", "did you mean 'before'"),
        ("features.seen.age={unit: days}", "features.seen.age.before", "missing"),
        ("features.seen.time_zone=Mars/Base", "features.seen.time_zone", "there is no time zone 'Mars/Base'"),
        ("features[user.country].hash_buckets=null", "features[user.country]", "exactly one of vocabulary, num_values"),
        ("features[user.country].num_values=3", "features[user.country]", "set: num_values, hash_buckets"),
        (
            "features[user.country].hash_buckets=100001",
            "features[user.country].hash_buckets",
            "Larger tables come later",
        ),
        ("features.both.num_hashes=2", "features.both", "num_hashes applies only to hash_buckets"),
        ("features.both.num_hashes=3", "features.both.num_hashes", "3 is invalid: .*1 or 2"),
        (
            "features.item={kind: category, num_values: 4}",
            "features",
            "both and item use the table item, but both.num_values",
        ),
        # Leaks.
        ("features.x={kind: number, column: clicked}", "features.x", "reads the column clicked, which is the label"),
        ("features.seen.age.before=clicked", "features.seen", "reads the column clicked, which is the label"),
        ("train_data.tasks={clicked: {}, age: {}}", "features.age", "reads the column age, which is the label"),
        ("validation_data.validation.tasks={clicked: {}, age: {}}", "features.age", "which is the label of age"),
        (
            f"train_data.preprocess.rectify_labels={{{RECTIFY}, label_to_engaged_timestamp_field: {{clicked: seen}}}}",
            "features.seen",
            "reads the column seen, which is the time of clicked",
        ),
        # Without features, or with what they replace.
        ("features=null", "train_data.seg_dense_schema", "missing; name a schema, or list the features"),
        ("features=null", "validation_data.validation.seg_dense_schema", "missing"),
        ("train_data.seg_dense_schema={schema_path: s}", "train_data.seg_dense_schema", "does not apply"),
        ("train_data.preprocess.downcast={}", "train_data.preprocess.downcast", "does not apply"),
        (
            "validation_data.validation.preprocess={truncate_and_slice: {}, extract_features: {}}",
            "validation_data.validation.preprocess.extract_features",
            "does not apply, because the top-level key features says what is read. Remove this key, or features",
        ),
        (
            "model.small_embeddings.tables=[{name: a, num_embeddings: 1, embedding_dim: 1, index: 0}]",
            "model.small_embeddings",
            "does not apply",
        ),
        ("model.stratifiers=[{name: a, index: 0, value: 1}]", "model.stratifiers", "does not apply"),
    ],
)
def test_an_error_is_reported_with_its_key_path_and_origin(
    path: Path, override: str, key_path: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_from_yaml(RecapConfig, path, [override])
    problems = str(caught.value).splitlines()[1:]
    pattern = re.compile(r"  (.*?) \((?:line \d+|--set .*?)\): ((?! ).*)")
    texts = [line.replace(override, "") for line in problems]
    found = {match[1]: match[2] for text in texts if (match := pattern.fullmatch(text))}
    assert len(found) == len(problems), "each has its origin"
    assert key_path in found, found
    assert re.search(message, found[key_path]), found[key_path]


def test_all_keys_that_features_replace_are_reported_together(path: Path) -> None:
    overrides = ["train_data.seg_dense_schema={schema_path: s}", "train_data.preprocess.downcast={}"]
    overrides += ["model.stratifiers=[{name: a, index: 0, value: 1}]", "features.x={kind: number, column: clicked}"]
    with pytest.raises(ConfigError, match=r": 4 errors\n"):
        load_config_from_yaml(RecapConfig, path, overrides)


def test_an_error_in_the_text_has_its_line(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace("buckets: 4", "buckets: four"))
    line = text[: text.index("buckets: 4")].count("\n") + 1
    with pytest.raises(ConfigError, match=rf"features\.age\.buckets \(line {line}\): 'four' is invalid"):
        load_config_from_yaml(RecapConfig, path)


def test_overrides_and_printing_work_with_every_kind(path: Path, tmp_path: Path) -> None:
    overrides = ["features.age.buckets=8", "features[user.country].num_hashes=2", "features.new={kind: boolean}"]
    loaded = load_config_from_yaml(RecapConfig, path, [*overrides, "features.seen.age.unit=days"])
    assert loaded.features is not None
    values = loaded.model_dump()["features"]
    assert (values["age"]["buckets"], values["user.country"]["num_hashes"]) == (8, 2)
    assert (values["new"]["kind"], values["seen"]["age"]["unit"]) == ("boolean", "days")
    printed = tmp_path / "printed.yaml"
    printed.write_text(loaded.pretty_print())
    assert load_config_from_yaml(RecapConfig, printed) == loaded


def test_a_column_of_weights_or_of_serving_times_may_be_a_feature(path: Path) -> None:
    rectify = f"{{{RECTIFY}, label_to_engaged_timestamp_field: {{clicked: e}}}}".replace(": s,", ": seen,")
    overrides = ["train_data.weight_column=age", f"train_data.preprocess.rectify_labels={rectify}"]
    assert load_config_from_yaml(RecapConfig, path, overrides).train_data.weight_column == "age"
