from pathlib import Path

import pydantic
import pytest

from projects.twhin.model.config import RankingConfig, TwhinModelConfig
from projects.twhin.model.relations import build_relations


def config(path: Path) -> TwhinModelConfig:
    table = {"name": "entity", "num_embeddings": 5, "embedding_dim": 4, "optimizer": {"sgd": {"lr": 0.1}}}
    return TwhinModelConfig.model_validate(
        {
            "embeddings": {"tables": [table]},
            "relations": {"names_path": str(path), "lhs": "entity", "rhs": "entity", "operator": "diagonal"},
            "translation_optimizer": {"sgd": {"lr": 0.1}},
        }
    )


def test_relation_names_come_from_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("/film/actor\nis a\u2028kind of\n", encoding="utf-8")
    relations = build_relations(config(path))
    assert relations.names == ("/film/actor", "is a\u2028kind of")
    assert relations.operators == ("diagonal", "diagonal")
    assert [(segment.lhs, segment.rhs, segment.relations) for segment in relations.segments] == [
        ("entity", "entity", (0, 1))
    ]


def test_hits_at_the_same_k_twice_is_refused():
    with pytest.raises(pydantic.ValidationError, match="10 is given more than once"):
        RankingConfig(hits_at=[1, 10, 10])


def test_known_edges_without_filtered_ranks_are_refused():
    with pytest.raises(pydantic.ValidationError, match="known_edges is set, but filtered is false"):
        RankingConfig(known_edges=["x"], filtered=False)
