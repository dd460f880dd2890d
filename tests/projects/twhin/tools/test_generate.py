import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from common.errors import UserError
from projects.twhin.data.vocabulary import read_vocabulary
from projects.twhin.tools.generate import NUM_KINDS, RELATIONS, GeneratedGraph, draw_graph, generate, main, report

USERS, TWEETS, EDGES = 3000, 1600, 40_000


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> np.ndarray[Any, Any]:
    """Return the edges of a split, [edges, 3]."""
    table = pq.read_table(path)
    assert table.column_names == ["lhs", "rel", "rhs"]
    return np.stack([table.column(name).to_numpy() for name in table.column_names], axis=1)


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """Return the directory of a generated graph."""
    out: Path = tmp_path_factory.mktemp("generated") / "graph"
    generate(out, 0, USERS, TWEETS, EDGES)
    return out


def test_splits_partition_the_edges_and_keep_the_relation_shares(generated):
    splits = {split: read(generated / split) for split in ("train", "validation", "test")}
    assert {split: len(edges) for split, edges in splits.items()} == {"train": 38_400, "validation": 800, "test": 800}
    edges = np.concatenate(list(splits.values()))
    assert len(np.unique(edges, axis=0)) == EDGES
    assert edges.min() == 0
    assert (edges.max(axis=0) < [USERS, len(RELATIONS), TWEETS]).all()
    shares = [spec.share for spec in RELATIONS.values()]
    assert np.bincount(edges[:, 1]) / EDGES == pytest.approx(shares)
    for split in splits.values():
        # The tolerance is five standard deviations for the smallest split.
        assert np.bincount(split[:, 1]) / len(split) == pytest.approx(shares, abs=5 * (0.25 / 800) ** 0.5)


def test_vocabularies_name_every_row(generated):
    users, tweets = (
        read_vocabulary(generated / "vocabulary" / f"{table}.parquet").to_pylist() for table in ("user", "tweet")
    )
    assert users == list(range(1, USERS + 1))
    assert tweets == list(range(10**12, 10**12 + TWEETS))


@pytest.fixture(scope="module")
def default() -> GeneratedGraph:
    """Return a graph of the default size."""
    return draw_graph(0, 40_000, 20_000, 500_000)


@pytest.mark.parametrize(("side", "count", "exponent"), [("lhs", 40_000, 0.6), ("rhs", 20_000, 0.75)])
def test_degrees_follow_a_power_law(default, side, count, exponent):
    degrees = np.sort(np.bincount(getattr(default, side), minlength=count))[::-1]
    ranks = np.unique(np.geomspace(20, count / 4, 50).astype(int))
    slope, _ = np.polyfit(np.log(ranks), np.log(degrees[ranks - 1]), 1)
    # Dropping duplicate edges lowers the degrees of the first ranks.
    assert -exponent <= slope <= -exponent + 0.15
    assert np.corrcoef(np.log(ranks), np.log(degrees[ranks - 1]))[0, 1] < -0.99
    assert degrees[0] > 100 * np.median(degrees)


def test_users_and_relations_predict_tweets(generated):
    """The tweets of similar users predict better than popularity alone, and the relation improves on both."""
    train, validation = read(generated / "train"), read(generated / "validation")
    by_relation = np.zeros((len(RELATIONS), TWEETS))
    np.add.at(by_relation, (train[:, 1], train[:, 2]), 1)
    users = np.zeros((USERS, TWEETS), np.float32)
    users[train[:, 0], train[:, 2]] = 1
    common_users = users.T @ users
    user_score = users @ (common_users / np.maximum(1, common_users.sum(axis=0)))
    relation_score = (by_relation + 0.5) / (by_relation.sum(axis=0) + 0.5 * len(RELATIONS))
    random_tweets = np.random.default_rng(1).integers(TWEETS, size=len(validation))
    lhs, rel = np.tile(validation[:, 0], 2), np.tile(validation[:, 1], 2)
    rhs = np.concatenate([validation[:, 2], random_tweets])
    labels = np.arange(len(rhs)) < len(validation)
    popularity = by_relation.sum(axis=0)[rhs]
    with_user = popularity * user_score[lhs, rhs]
    aucs = [roc_auc_score(labels, score) for score in (popularity, with_user, with_user * relation_score[rel, rhs])]
    assert aucs[0] > 0.6
    assert aucs[1] > aucs[0] + 0.03
    assert aucs[2] > aucs[1] + 0.01


def test_relations_draw_kinds_with_their_probabilities(default):
    kinds = default.tweet_cells[default.rhs] % NUM_KINDS
    for relation, spec in enumerate(RELATIONS.values()):
        relation_kinds = kinds[default.rel == relation]
        shares = np.bincount(relation_kinds, minlength=NUM_KINDS) / len(relation_kinds)
        # Dropping duplicate edges lowers the share of the preferred kind.
        assert shares == pytest.approx(spec.kinds, abs=0.03)


def test_same_seed_gives_the_same_bytes(generated, tmp_path):
    generate(tmp_path / "again", 0, USERS, TWEETS, EDGES)
    assert contents(tmp_path / "again") == contents(generated)
    generate(tmp_path / "other", 1, USERS, TWEETS, EDGES)
    other = contents(tmp_path / "other")
    assert all((other[name] == data) == name.startswith("vocabulary") for name, data in contents(generated).items())


def test_command_line_reports_what_a_configuration_needs(tmp_path, monkeypatch, capsys):
    arguments = ["--users", "300", "--tweets", "200", "--edges", "500"]
    monkeypatch.setattr(sys, "argv", ["main", "--out", str(tmp_path / "graph"), *arguments])
    assert main() == 0
    output = capsys.readouterr().out
    counts = {split: np.bincount(read(tmp_path / "graph" / split)[:, 1]) for split in ("train", "validation", "test")}
    assert output == report(tmp_path / "graph", 300, 200, counts) + "\n"
    assert "user (num_embeddings: 300), tweet (num_embeddings: 200)" in output
    assert "edges: 480 train, 10 validation, 10 test; " in output

    before = contents(tmp_path / "graph")
    with pytest.raises(UserError, match=rf"--out {tmp_path / 'graph'}.* exists"):
        main()
    assert contents(tmp_path / "graph") == before


@pytest.mark.parametrize(
    ("sizes", "facts"),
    [
        ((300, 159, 200), ["--tweets 159: ", "at least 160", "40 topics", "4 kinds"]),
        ((300, 200, 601), ["--edges 601: ", "at most 600", "1% of the pairs", "300 users", "200 tweets"]),
        ((300, 200, 99), ["--edges 99: ", "at least 100", "split"]),
    ],
)
def test_sizes_that_do_not_fit_are_errors(tmp_path, sizes, facts):
    with pytest.raises(UserError) as caught:
        generate(tmp_path / "graph", 0, *sizes)
    assert [fact for fact in facts if fact not in str(caught.value)] == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["--out", "x", "--seed", "-1"], ["--out", "x", "--edges", "0"]])
def test_invalid_command_line_is_a_user_error(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main", *arguments])
    with pytest.raises(UserError, match=r"usage: "):
        main()
