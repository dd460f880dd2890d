import pytest

from common.errors import ConfigError
from common.features.config import NumberFeature
from common.features.features_file import read_features


def test_other_keys_are_ignored(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: {anything: 1}\nfeatures: {x: {kind: number, missing: 1.5}}\n")
    assert read_features(path) == {"x": NumberFeature(kind="number", missing=1.5)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model: {}", "features: missing"),
        ("features: {}", "features (line 1): "),
        ("features: {x: {kind: numbre}}", "features.x"),
        ("features: [", "line 1"),
    ],
)
def test_wrong_files(tmp_path, text, problem):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_features(path)
    assert str(caught.value).startswith(str(path))
    assert problem in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read this file"):
        read_features(tmp_path / "none.yaml")
