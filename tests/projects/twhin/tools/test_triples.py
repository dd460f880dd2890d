import gzip
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from common.reader.files import DataError
from projects.twhin.data.vocabulary import read_vocabulary
from projects.twhin.tools.config_writer import PreparedRelation
from projects.twhin.tools.triples import prepare_triples

Triples = list[tuple[str, str, str]]


def make_triples(count: int, seed: int) -> Triples:
    rng = np.random.default_rng(seed)
    numbers = rng.integers((40, 5, 40), size=(count, 3)).tolist()
    return [(f"e{head}", f"r{relation}", f"ä {tail}") for head, relation, tail in numbers]


def write(path: Path, triples: Triples) -> Path:
    text = "".join("\t".join(triple) + "\n" for triple in triples).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_edges_represent_the_triples(tmp_path):
    parts = [make_triples(100, seed) for seed in range(3)]
    files = [write(tmp_path / name, part) for name, part in zip(("a.tsv", "b.tsv.gz", "c.tsv"), parts, strict=True)]
    out = tmp_path / "out"
    out.mkdir()
    graph = prepare_triples(out, {"train": files[:2], "test": files[2:]}, "thing")
    entities = read_vocabulary(out / "vocabulary" / "thing.parquet").to_pylist()
    names = [relation.name for relation in graph.relations]
    for split, expected in (("train", parts[0] + parts[1]), ("test", parts[2])):
        table = pq.read_table(out / split)
        edges = zip(*(table.column(name).to_pylist() for name in ("lhs", "rel", "rhs")), strict=True)
        assert [(entities[lhs], names[rel], entities[rhs]) for lhs, rel, rhs in edges] == expected
    # Each name appears once, in the order of its first appearance.
    everything = [triple for part in parts for triple in part]
    assert entities == list(dict.fromkeys(end for head, _, tail in everything for end in (head, tail)))
    assert names == list(dict.fromkeys(relation for _, relation, _ in everything))
    assert graph.tables == {"thing": len(entities)}
    assert graph.relations[0] == PreparedRelation(names[0], "thing", "thing")
    assert graph.num_edges == {"train": 200, "test": 100}


def test_names_that_appear_only_in_validation_get_ids(tmp_path):
    train, validation = write(tmp_path / "t", [("a", "r", "b")]), write(tmp_path / "v", [("a", "s", "new")])
    graph = prepare_triples(tmp_path, {"train": [train], "validation": [validation]}, "entity")
    assert read_vocabulary(tmp_path / "vocabulary" / "entity.parquet").to_pylist() == ["a", "b", "new"]
    assert [relation.name for relation in graph.relations] == ["r", "s"]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_files_without_triples_are_an_error(tmp_path, content):
    (tmp_path / "x").write_text(content)
    with pytest.raises(DataError) as caught:
        prepare_triples(tmp_path, {"train": [tmp_path / "x"]}, "entity")
    assert str(caught.value).startswith(f"--train {tmp_path / 'x'}: no triples")


def test_blanks_around_names_are_removed_with_a_warning(tmp_path, caplog):
    rows = [("a", "r", "b "), (" a", " r", "b"), ("a", "r", "c"), ("c d", "r", " c  d ")]
    graph = prepare_triples(tmp_path, {"train": [write(tmp_path / "x", rows)]}, "entity")
    assert read_vocabulary(tmp_path / "vocabulary" / "entity.parquet").to_pylist() == ["a", "b", "c", "c d", "c  d"]
    assert [relation.name for relation in graph.relations] == ["r"]
    [message] = caplog.messages
    assert "around 4 name(s)" in message
    assert f"' a' ({tmp_path}/x:2)" in message


def test_other_invisible_characters_around_names_are_kept_with_a_warning(tmp_path, caplog):
    rows = [("a", "r", "b"), ("a", "r", "b\xa0"), ("a", "r", "\u3000b"), ("a", "r", "b\u200b")]
    prepare_triples(tmp_path, {"train": [write(tmp_path / "x", rows)]}, "entity")
    vocabulary = read_vocabulary(tmp_path / "vocabulary" / "entity.parquet").to_pylist()
    assert vocabulary == ["a", "b", "b\xa0", "\u3000b", "b\u200b"]
    [message] = caplog.messages
    assert "3 name(s)" in message
    assert f"'b\\xa0' ({tmp_path}/x:2)" in message


def test_names_without_white_space_around_them_give_no_warning(tmp_path, caplog):
    prepare_triples(tmp_path, {"train": [write(tmp_path / "x", [("a\xa0 b", "r", "é\u200dé")])]}, "entity")
    assert caplog.messages == []
