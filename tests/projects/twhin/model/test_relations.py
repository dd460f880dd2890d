from pathlib import Path

from projects.twhin.model.config import TwhinModelConfig
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
