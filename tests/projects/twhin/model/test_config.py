from pathlib import Path

import pytest

from common.errors import ConfigError
from projects.twhin.model.config import NamedRelations, TwhinModelConfig
from projects.twhin.model.relations import Relations


def config(path: Path) -> TwhinModelConfig:
    table = {"name": "entity", "num_embeddings": 5, "embedding_dim": 4, "optimizer": {"sgd": {"lr": 0.1}}}
    return TwhinModelConfig.model_validate(
        {
            "embeddings": {"tables": [table]},
            "relations": {"names_path": str(path), "lhs": "entity", "rhs": "entity", "operator": "diagonal"},
            "translation_optimizer": {"sgd": {"lr": 0.1}},
        }
    )


def test_names_of_relations_from_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("/film/actor\nis a\u2028kind of\n", encoding="utf-8")
    relations = Relations(config(path))
    assert relations.names == ("/film/actor", "is a\u2028kind of")
    assert relations.operators == ("diagonal", "diagonal")
    assert [(segment.lhs, segment.rhs, segment.relations) for segment in relations.segments] == [
        ("entity", "entity", (0, 1))
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read: "),
        (b"", "line 1: empty; a name is expected on each line"),
        (b"a\n\nb\n", "line 2: empty"),
        (b"a\nb\na\n", "line 3: a stands on line 1 too; names must differ"),
        (b"\xff\n", "can't be read: 'utf-8' codec"),
    ],
)
def test_a_file_that_is_not_as_it_must_be(tmp_path, content, message):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        NamedRelations(names_path=str(path), lhs="x", rhs="y").read()
    assert str(caught.value).startswith(f"model.relations.names_path: {path}: {message}")
