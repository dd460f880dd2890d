from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from common.errors import UserError
from projects.twhin.data.vocabulary import read_vocabulary
from projects.twhin.tools.generate import NUM_KINDS, RELATIONS, Graph, draw_graph, generate, main, report

USERS, TWEETS, EDGES = 3000, 1600, 40_000


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> np.ndarray[Any, Any]:
    """[edges, 3]."""
    table = pq.read_table(path)
    assert table.column_names == ["lhs", "rel", "rhs"]
    return np.stack([table.column(name).to_numpy() for name in table.column_names], axis=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out: Path = tmp_path_factory.mktemp("made") / "graph"
    generate(out, 0, USERS, TWEETS, EDGES)
    return out


def test_splits_hold_all_edges_once_and_all_relations_in_their_shares(made):
    splits = {split: read(made / split) for split in ("train", "validation", "test")}
    assert {split: len(edges) for split, edges in splits.items()} == {"train": 38_400, "validation": 800, "test": 800}
    edges = np.concatenate(list(splits.values()))
    assert len(np.unique(edges, axis=0)) == EDGES
    assert edges.min() == 0
    assert (edges.max(axis=0) < [USERS, len(RELATIONS), TWEETS]).all()
    shares = [taste.share for taste in RELATIONS.values()]
    assert np.bincount(edges[:, 1]) / EDGES == pytest.approx(shares)
    for of_split in splits.values():
        # Five standard deviations of the smallest split.
        assert np.bincount(of_split[:, 1]) / len(of_split) == pytest.approx(shares, abs=5 * (0.25 / 800) ** 0.5)


def test_vocabularies_name_every_row(made):
    users, tweets = (
        read_vocabulary(made / "vocabulary" / f"{table}.parquet").to_numpy() for table in ("user", "tweet")
    )
    assert (len(set(users)), len(set(tweets))) == (USERS, TWEETS)


@pytest.fixture(scope="module")
def default() -> Graph:
    return draw_graph(0, 40_000, 20_000, 500_000)


@pytest.mark.parametrize(("side", "count", "exponent"), [("lhs", 40_000, 0.6), ("rhs", 20_000, 0.75)])
def test_degrees_fall_as_a_power_of_the_rank(default, side, count, exponent):
    degrees = np.sort(np.bincount(getattr(default, side), minlength=count))[::-1]
    ranks = np.unique(np.geomspace(20, count / 4, 50).astype(int))
    slope, _ = np.polyfit(np.log(ranks), np.log(degrees[ranks - 1]), 1)
    # Repeated edges are dropped, which takes from the first ranks.
    assert -exponent <= slope <= -exponent + 0.15
    assert np.corrcoef(np.log(ranks), np.log(degrees[ranks - 1]))[0, 1] < -0.99
    assert degrees[0] > 100 * np.median(degrees)


def test_users_and_relations_tell_which_tweets(made):
    """What users with the same tweets have tells more than popularity, with the relation's tweets more than both."""
    train, validation = read(made / "train"), read(made / "validation")
    by_relation = np.zeros((len(RELATIONS), TWEETS))
    np.add.at(by_relation, (train[:, 1], train[:, 2]), 1)
    users = np.zeros((USERS, TWEETS), np.float32)
    users[train[:, 0], train[:, 2]] = 1
    together = users.T @ users
    of_user = users @ (together / np.maximum(1, together.sum(axis=0)))
    of_relation = (by_relation + 0.5) / (by_relation.sum(axis=0) + 0.5 * len(RELATIONS))
    others = np.random.default_rng(1).integers(TWEETS, size=len(validation))
    lhs, rel = np.tile(validation[:, 0], 2), np.tile(validation[:, 1], 2)
    rhs = np.concatenate([validation[:, 2], others])
    labels = np.arange(len(rhs)) < len(validation)
    popularity = by_relation.sum(axis=0)[rhs]
    taste = popularity * of_user[lhs, rhs]
    aucs = [roc_auc_score(labels, score) for score in (popularity, taste, taste * of_relation[rel, rhs])]
    assert aucs[0] > 0.6
    assert aucs[1] > aucs[0] + 0.03
    assert aucs[2] > aucs[1] + 0.01


def test_relations_prefer_their_kinds(default):
    kinds = default.tweet_cells[default.rhs] % NUM_KINDS
    for relation, taste in enumerate(RELATIONS.values()):
        of_relation = kinds[default.rel == relation]
        found = np.bincount(of_relation, minlength=NUM_KINDS) / len(of_relation)
        # Repeated edges are dropped, which takes from what is preferred.
        assert found == pytest.approx(taste.kinds, abs=0.03)


def test_same_seed_same_bytes(made, tmp_path):
    generate(tmp_path / "again", 0, USERS, TWEETS, EDGES)
    assert contents(tmp_path / "again") == contents(made)
    generate(tmp_path / "other", 1, USERS, TWEETS, EDGES)
    other = contents(tmp_path / "other")
    assert all((other[name] == data) == name.startswith("vocabulary") for name, data in contents(made).items())


def test_the_command_line_tells_what_a_configuration_needs(tmp_path, capsys):
    arguments = ["--users", "300", "--tweets", "200", "--edges", "500"]
    assert main(["--out", str(tmp_path / "graph"), *arguments]) == 0
    told = capsys.readouterr().out
    tallies = {split: np.bincount(read(tmp_path / "graph" / split)[:, 1]) for split in ("train", "validation", "test")}
    assert told == report(tmp_path / "graph", 300, 200, tallies) + "\n"
    assert "tables: user of num_embeddings 300, tweet of num_embeddings 200; " in told
    assert "edges: 480 train, 10 validation, 10 test; " in told

    before = contents(tmp_path / "graph")
    assert main(["--out", str(tmp_path / "graph"), *arguments]) == 2
    assert "already exists" in capsys.readouterr().err
    assert contents(tmp_path / "graph") == before


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ((300, 159, 200), "--tweets 159: at least 160, one of each of 40 topics and 4 kinds"),
        ((300, 200, 601), "--edges 601: at most 600, one of a hundred pairs of 300 users and 200 tweets"),
        ((300, 200, 99), "--edges 99: at least 100, so that every split has some"),
    ],
)
def test_numbers_that_do_not_fit(tmp_path, numbers, problem):
    with pytest.raises(UserError) as caught:
        generate(tmp_path / "graph", 0, *numbers)
    assert str(caught.value) == problem
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["--out", "x", "--seed", "-1"], ["--out", "x", "--edges", "0"]])
def test_a_wrong_command_line(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
