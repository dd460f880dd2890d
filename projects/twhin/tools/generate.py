"""Makes the default graph: `python -m projects.twhin.tools.generate --out DIR`.

Users have two topics, tweets a topic and a kind, and relations prefer kinds: who wants to rank the tweets of an edge
must know the user's topics and the relation. Activity of users and popularity of tweets fall as powers of their ranks.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tabulate import tabulate

from common.errors import UserError
from common.files.atomic_directory import atomic_directory
from common.process.arguments import at_least_1, seed_number
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.tools.graph_files import SPLITS, EdgeWriter, vocabulary_path

DESCRIPTION = "Make the default graph of TwHIN: users, tweets, and edges of four relations between them."


class Taste(NamedTuple):
    """A relation: its share of the edges, and how likely its tweets are of each kind."""

    share: float
    kinds: tuple[float, ...]


RELATIONS = {
    "fav": Taste(0.5, (0.70, 0.10, 0.10, 0.10)),
    "reply": Taste(0.15, (0.05, 0.85, 0.05, 0.05)),
    "retweet": Taste(0.25, (0.25, 0.05, 0.65, 0.05)),
    "magic_recs": Taste(0.1, (0.05, 0.05, 0.10, 0.80)),
}
"""In the order of their ids."""

NUM_TOPICS = 40
NUM_KINDS = 4
# Of the user's first topic, of the second, and of any.
_TOPIC_SHARES = (0.6, 0.25, 0.15)
# Weight of the entity of rank n: n to minus this.
_ACTIVITY_EXPONENT, _POPULARITY_EXPONENT = 0.6, 0.75
# Edges of a pair of entities are drawn until they differ: that takes long where most of the pairs are wanted.
_MAX_SHARE_OF_PAIRS = 0.01

_USER_IDS_FROM, _TWEET_IDS_FROM = 1, 10**12
_MIN_EDGES = 100
_VALIDATION_SHARE, _TEST_SHARE = 0.02, 0.02


class Graph(NamedTuple):
    """Edges [edges] int64 without repetitions, in random order; and what they were drawn from.

    Attributes:
      lhs: users.
      rel: relations.
      rhs: tweets.
      user_topics: [users, 2] int64, the first and the second topic.
      tweet_cells: [tweets] int64, topic * NUM_KINDS + kind.
    """

    lhs: NDArray[np.int64]
    rel: NDArray[np.int64]
    rhs: NDArray[np.int64]
    user_topics: NDArray[np.int64]
    tweet_cells: NDArray[np.int64]


def draw_graph(seed: int, num_users: int, num_tweets: int, num_edges: int) -> Graph:
    """A graph that depends on the arguments alone. num_tweets: at least one of each topic and kind."""
    rng = np.random.default_rng(seed)
    activity = _cumulated(rng.permutation(_power(num_users, _ACTIVITY_EXPONENT)))
    user_topics = np.stack([rng.integers(NUM_TOPICS, size=num_users) for _ in range(2)], axis=1)
    tweet_cells = rng.permutation(num_tweets) % (NUM_TOPICS * NUM_KINDS)
    by_cell = np.argsort(tweet_cells, kind="stable")
    popularity = _cumulated(rng.permutation(_power(num_tweets, _POPULARITY_EXPONENT))[by_cell])
    first_of_cell = np.searchsorted(tweet_cells[by_cell], np.arange(NUM_TOPICS * NUM_KINDS + 1))

    def draw(taste: Taste, count: int) -> NDArray[np.int64]:
        """Pairs of entities as user * num_tweets + tweet."""
        users = _choose(rng, activity, np.zeros(count), np.ones(count))
        source = rng.choice(3, size=count, p=_TOPIC_SHARES)
        anything = rng.integers(NUM_TOPICS, size=count)
        topic = np.where(source == 2, anything, user_topics[users, np.minimum(source, 1)])
        cells = topic * NUM_KINDS + rng.choice(NUM_KINDS, size=count, p=taste.kinds)
        starts = np.concatenate([[0.0], popularity])[first_of_cell]
        tweets = by_cell[_choose(rng, popularity, starts[cells], starts[cells + 1])]
        return np.asarray(users * num_tweets + tweets)

    counts = np.diff(np.rint(np.cumsum([0.0, *(taste.share for taste in RELATIONS.values())]) * num_edges).astype(int))
    pairs, rel = [], []
    for relation, (taste, count) in enumerate(zip(RELATIONS.values(), counts.tolist(), strict=True)):
        found = np.empty(0, np.int64)
        while len(found) < count:
            found = np.unique(np.concatenate([found, draw(taste, count)]))
        pairs.append(rng.permutation(found)[:count])
        rel.append(np.full(count, relation))
    order = rng.permutation(num_edges)
    lhs, rhs = np.divmod(np.concatenate(pairs)[order], num_tweets)
    return Graph(lhs, np.concatenate(rel)[order], rhs, user_topics, tweet_cells)


def _power(count: int, exponent: float) -> NDArray[np.float64]:
    return np.arange(1, count + 1, dtype=np.float64) ** -exponent


def _cumulated(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Up to 1."""
    cumulated = np.cumsum(weights)
    return np.asarray(cumulated / cumulated[-1])


def _choose(
    rng: np.random.Generator,
    cumulated: NDArray[np.float64],
    begin: NDArray[np.float64],
    end: NDArray[np.float64],
) -> NDArray[np.int64]:
    """An entity for each range of the cumulated weights, drawn by weight."""
    chosen = np.searchsorted(cumulated, begin + (end - begin) * rng.random(len(begin)), side="right")
    return np.asarray(np.minimum(chosen, len(cumulated) - 1), np.int64)


def generate(out: Path, seed: int, num_users: int, num_tweets: int, num_edges: int) -> dict[str, NDArray[np.int64]]:
    """Writes the graph to `out`, which appears when it is complete; its bytes depend on the other arguments alone.

    Returns:
      by split ("train", "validation", "test"), edges of each relation [relations].

    Raises:
      UserError: the numbers don't fit each other, `out` can't be written, or exists and is not an empty directory.
    """
    if num_tweets < NUM_TOPICS * NUM_KINDS:
        raise UserError(
            f"--tweets {num_tweets}: at least {NUM_TOPICS * NUM_KINDS}, one of each of {NUM_TOPICS} topics and "
            f"{NUM_KINDS} kinds"
        )
    if num_edges < _MIN_EDGES:
        raise UserError(f"--edges {num_edges}: at least {_MIN_EDGES}, so that every split has some")
    if num_edges > (most := int(num_users * num_tweets * _MAX_SHARE_OF_PAIRS)):
        raise UserError(
            f"--edges {num_edges}: at most {most}, one of a hundred pairs of {num_users} users and {num_tweets} tweets"
        )
    with atomic_directory(out) as partial:
        graph = draw_graph(seed, num_users, num_tweets, num_edges)
        bounds = np.rint(np.cumsum([0, 1 - _VALIDATION_SHARE - _TEST_SHARE, _VALIDATION_SHARE]) * num_edges).astype(int)
        tallies = {}
        for split, begin, end in zip(SPLITS, bounds, [*bounds[1:], num_edges], strict=True):
            with EdgeWriter(partial / split) as writer:
                writer.write(graph.lhs[begin:end], graph.rel[begin:end], graph.rhs[begin:end])
            tallies[split] = np.bincount(graph.rel[begin:end], minlength=len(RELATIONS))
        for table, first, count in (("user", _USER_IDS_FROM, num_users), ("tweet", _TWEET_IDS_FROM, num_tweets)):
            write_vocabulary(vocabulary_path(partial, table), pa.array(np.arange(first, first + count)))
    return tallies


def report(out: Path, num_users: int, num_tweets: int, tallies: dict[str, NDArray[np.int64]]) -> str:
    """What was made, for the tables of a configuration."""
    rows = [[*row] for row in zip(range(len(RELATIONS)), RELATIONS, *tallies.values(), strict=True)]
    table = tabulate(rows, headers=["id", "relation", *tallies])
    counts = ", ".join(f"{tally.sum()} {split}" for split, tally in tallies.items())
    megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    return (
        f"{table}\ntables: user of num_embeddings {num_users}, tweet of num_embeddings {num_tweets}; every relation is "
        f"of lhs user and rhs tweet\n{out}: edges: {counts}; {megabytes:.1f} MB"
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; the exit status: 0, or 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m projects.twhin.tools.generate", description=DESCRIPTION)
    parser.add_argument("--out", type=Path, required=True, help="directory to make; must not exist, or be empty")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of everything that is drawn (%(default)s)")
    parser.add_argument("--users", type=at_least_1, default=40_000, help="rows of the table user (%(default)s)")
    parser.add_argument("--tweets", type=at_least_1, default=20_000, help="rows of the table tweet (%(default)s)")
    parser.add_argument("--edges", type=at_least_1, default=500_000, help="of all splits together (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        tallies = generate(options.out, options.seed, options.users, options.tweets, options.edges)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(report(options.out, options.users, options.tweets, tallies) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
