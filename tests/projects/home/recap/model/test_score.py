import math
from pathlib import Path

import pytest
import torch

from common.errors import ConfigError
from projects.home.recap.model.config import ModelConfig
from projects.home.recap.model.score import WeightedScore, configured_score_weights
from tests.support.root import ROOT

X_2026 = ROOT / "projects/home/recap/score_weights/x-2026.yaml"

PUBLISHED = {
    "is_favorited": 0.5,
    "is_replied": 5,
    "is_retweeted": 1,
    "is_quoted": 5,
    "is_clicked": 0.4,
    "is_shared": 2,
    "is_shared_by_direct_message": 5,
    "is_shared_by_copied_link": 20,
    "is_author_followed": 4,
    "is_photo_expanded": 0.05,
    "is_video_viewed": 0.05,
    "is_not_interested": -43.2,
    "is_author_blocked": -31.2,
    "is_author_muted": -58.8,
    "is_report_tweet_clicked": -234,
}


def model_config(tasks: list[str], path: Path = X_2026) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "featurization_config": {"log1p_abs_config": {}},
            "tasks": {task: {"mlp_config": {"layer_sizes": [1]}} for task in tasks},
            "score_weights_path": str(path),
        }
    )


def test_the_second_shipped_table_has_the_published_weights() -> None:
    tasks = [f"recap.engagement.{name}" for name in PUBLISHED]
    assert configured_score_weights(model_config(tasks)) == dict(zip(tasks, PUBLISHED.values(), strict=True))


def test_labels_of_a_table_that_are_not_tasks_are_ignored() -> None:
    tasks = ["recap.engagement.is_replied", "mine", "recap.engagement.is_author_muted"]
    assert configured_score_weights(model_config(tasks)) == {tasks[0]: 5.0, tasks[2]: -58.8}


def test_a_table_without_a_task_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x-2026\.yaml has no weight of a task\. .*is_favorited, .*tasks are mine\."):
        configured_score_weights(model_config(["mine"]))
    with pytest.raises(ConfigError, match=r"missing\.yaml: "):
        configured_score_weights(model_config(["mine"], tmp_path / "missing.yaml"))
    (tmp_path / "bad.yaml").write_text("score_weights: {mine: many}")
    with pytest.raises(ConfigError, match=r"bad\.yaml: 1 error\n  score_weights\.mine \(line 1\): 'many' is invalid"):
        configured_score_weights(model_config(["mine"], tmp_path / "bad.yaml"))


def test_weights_and_a_table_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="at most one of score_weights, score_weights_path may be set"):
        ModelConfig.model_validate(model_config(["mine"]).model_dump() | {"score_weights": {"mine": 1.0}})


def test_the_score_is_the_weighted_sum_of_the_probabilities_in_float64() -> None:
    logits = torch.tensor([[0.0, -1.0, 5.0], [17.0, -17.0, 2.0]])
    scores = WeightedScore(["a", "b", "c"], {"a": 2.0, "b": -300.0})(logits)
    assert scores.dtype == torch.float64
    expected = [2 / (1 + math.exp(-a)) - 300 / (1 + math.exp(-b)) for a, b, _ in logits.tolist()]
    assert scores.tolist() == pytest.approx(expected, rel=1e-15)


def test_confident_predictions_have_different_scores() -> None:
    """The first four probabilities are 1 in float32."""
    score = WeightedScore(["like", "report"], {"like": 0.5, "report": -369.0})
    logits = torch.tensor([[30.0, -40.0], [20.0, -40.0], [18.0, -40.0], [17.0, -40.0], [17.0, -20.0]])
    scores = score(logits).tolist()
    assert scores == sorted(set(scores), reverse=True)
