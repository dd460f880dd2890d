"""Generates the default graph: `python -m projects.twhin.tools.generate --out DIR`.

A user has two topics, a tweet has a topic and a kind, and each relation prefers one kind. Ranking the tweets of an edge
therefore requires the user's topics and the relation. User activity and tweet popularity follow power laws.
"""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[3])

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tabulate import tabulate

from common.errors import UserError
from common.files.atomic_directory import atomic_directory
from common.process.arguments import at_least_1, seed_number
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.tools.graph_files import SPLITS, EdgeWriter, vocabulary_path

DESCRIPTION = "Generates the default graph of TwHIN: users, tweets, and edges of four relations between them."


class RelationSpec(NamedTuple):
    """Distribution of the edges of a relation.

    Attributes:
      share: fraction of all edges.
      kinds: probability of each kind of tweet.
    """

    share: float
    kinds: tuple[float, ...]


RELATIONS = {
    "fav": RelationSpec(0.5, (0.70, 0.10, 0.10, 0.10)),
    "reply": RelationSpec(0.15, (0.05, 0.85, 0.05, 0.05)),
    "retweet": RelationSpec(0.25, (0.25, 0.05, 0.65, 0.05)),
    "magic_recs": RelationSpec(0.1, (0.05, 0.05, 0.10, 0.80)),
}
"""Relations in the order of their ids."""

NUM_TOPICS = 40
NUM_KINDS = 4
# Probabilities of the user's first topic, the second topic, and any topic.
_TOPIC_SHARES = (0.6, 0.25, 0.15)
# The entity of rank n has the weight n^-exponent.
_ACTIVITY_EXPONENT, _POPULARITY_EXPONENT = 0.6, 0.75
# draw_graph() redraws duplicate pairs, which takes long if the edges are a large share of all pairs.
_MAX_SHARE_OF_PAIRS = 0.01

_USER_IDS_FROM, _TWEET_IDS_FROM = 1, 10**12
_MIN_EDGES = 100
_VALIDATION_SHARE, _TEST_SHARE = 0.02, 0.02


class GeneratedGraph(NamedTuple):
    """Distinct edges in random order, and the properties of users and tweets that they depend on.

    Attributes:
      lhs: users, [edges] int64.
      rel: relations, [edges] int64.
      rhs: tweets, [edges] int64.
      user_topics: first and second topic of each user, [users, 2] int64.
      tweet_cells: topic * NUM_KINDS + kind of each tweet, [tweets] int64.
    """

    lhs: NDArray[np.int64]
    rel: NDArray[np.int64]
    rhs: NDArray[np.int64]
    user_topics: NDArray[np.int64]
    tweet_cells: NDArray[np.int64]


def draw_graph(seed: int, num_users: int, num_tweets: int, num_edges: int) -> GeneratedGraph:
    """Draw a graph that depends only on the arguments.

    Args:
      seed: seed of all draws.
      num_users: number of users.
      num_tweets: number of tweets; at least one for each pair of topic and kind.
      num_edges: number of edges.
    """
    rng = np.random.default_rng(seed)
    activity = _cumulative(rng.permutation(_power_law(num_users, _ACTIVITY_EXPONENT)))
    user_topics = np.stack([rng.integers(NUM_TOPICS, size=num_users) for _ in range(2)], axis=1)
    tweet_cells = rng.permutation(num_tweets) % (NUM_TOPICS * NUM_KINDS)
    by_cell = np.argsort(tweet_cells, kind="stable")
    popularity = _cumulative(rng.permutation(_power_law(num_tweets, _POPULARITY_EXPONENT))[by_cell])
    first_of_cell = np.searchsorted(tweet_cells[by_cell], np.arange(NUM_TOPICS * NUM_KINDS + 1))

    def draw(spec: RelationSpec, count: int) -> NDArray[np.int64]:
        """Draw pairs of entities, encoded as user * num_tweets + tweet."""
        users = _choose(rng, activity, np.zeros(count), np.ones(count))
        source = rng.choice(3, size=count, p=_TOPIC_SHARES)
        any_topic = rng.integers(NUM_TOPICS, size=count)
        topic = np.where(source == 2, any_topic, user_topics[users, np.minimum(source, 1)])
        cells = topic * NUM_KINDS + rng.choice(NUM_KINDS, size=count, p=spec.kinds)
        starts = np.concatenate([[0.0], popularity])[first_of_cell]
        tweets = by_cell[_choose(rng, popularity, starts[cells], starts[cells + 1])]
        return np.asarray(users * num_tweets + tweets)

    counts = np.diff(np.rint(np.cumsum([0.0, *(spec.share for spec in RELATIONS.values())]) * num_edges).astype(int))
    pairs, rel = [], []
    for relation, (spec, count) in enumerate(zip(RELATIONS.values(), counts.tolist(), strict=True)):
        distinct = np.empty(0, np.int64)
        while len(distinct) < count:
            distinct = np.unique(np.concatenate([distinct, draw(spec, count)]))
        pairs.append(rng.permutation(distinct)[:count])
        rel.append(np.full(count, relation))
    order = rng.permutation(num_edges)
    lhs, rhs = np.divmod(np.concatenate(pairs)[order], num_tweets)
    return GeneratedGraph(lhs, np.concatenate(rel)[order], rhs, user_topics, tweet_cells)


def _power_law(count: int, exponent: float) -> NDArray[np.float64]:
    """Return the weights 1^-exponent, 2^-exponent, ..., count^-exponent."""
    return np.arange(1, count + 1, dtype=np.float64) ** -exponent


def _cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cumulative sum of the weights, scaled so that the last value is 1."""
    cumulative = np.cumsum(weights)
    return np.asarray(cumulative / cumulative[-1])


def _choose(
    rng: np.random.Generator,
    cumulative: NDArray[np.float64],
    begin: NDArray[np.float64],
    end: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Draw one entity from each range [begin, end) of the cumulative weights, in proportion to the weights."""
    chosen = np.searchsorted(cumulative, begin + (end - begin) * rng.random(len(begin)), side="right")
    return np.asarray(np.minimum(chosen, len(cumulative) - 1), np.int64)


def generate(out: Path, seed: int, num_users: int, num_tweets: int, num_edges: int) -> dict[str, NDArray[np.int64]]:
    """Write the graph to the directory `out`, which appears when it is complete.

    The same arguments give the same bytes.

    Returns:
      Number of edges of each relation, [relations] int64, by split ("train", "validation", "test").

    Raises:
      UserError: the sizes do not fit each other, or `out` cannot be written or is not empty.
    """
    if num_tweets < NUM_TOPICS * NUM_KINDS:
        raise UserError(
            f"--tweets {num_tweets}: must be at least {NUM_TOPICS * NUM_KINDS}, one tweet for each of {NUM_TOPICS} "
            f"topics and {NUM_KINDS} kinds"
        )
    if num_edges < _MIN_EDGES:
        raise UserError(f"--edges {num_edges}: must be at least {_MIN_EDGES}, so that no split is empty")
    if num_edges > (most := int(num_users * num_tweets * _MAX_SHARE_OF_PAIRS)):
        raise UserError(
            f"--edges {num_edges}: must be at most {most}, which is {_MAX_SHARE_OF_PAIRS:.0%} of the pairs of "
            f"{num_users} users and {num_tweets} tweets"
        )
    with atomic_directory(out) as partial:
        graph = draw_graph(seed, num_users, num_tweets, num_edges)
        bounds = np.rint(np.cumsum([0, 1 - _VALIDATION_SHARE - _TEST_SHARE, _VALIDATION_SHARE]) * num_edges).astype(int)
        edge_counts = {}
        for split, begin, end in zip(SPLITS, bounds, [*bounds[1:], num_edges], strict=True):
            with EdgeWriter(partial / split) as writer:
                writer.write(graph.lhs[begin:end], graph.rel[begin:end], graph.rhs[begin:end])
            edge_counts[split] = np.bincount(graph.rel[begin:end], minlength=len(RELATIONS))
        for table, first, count in (("user", _USER_IDS_FROM, num_users), ("tweet", _TWEET_IDS_FROM, num_tweets)):
            write_vocabulary(vocabulary_path(partial, table), pa.array(np.arange(first, first + count)))
    return edge_counts


def report(out: Path, num_users: int, num_tweets: int, edge_counts: dict[str, NDArray[np.int64]]) -> str:
    """Return a summary of the generated graph with the values that a configuration needs."""
    rows = [[*row] for row in zip(range(len(RELATIONS)), RELATIONS, *edge_counts.values(), strict=True)]
    table = tabulate(rows, headers=["id", "relation", *edge_counts])
    totals = ", ".join(f"{counts.sum()} {split}" for split, counts in edge_counts.items())
    megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    return (
        f"{table}\ntables: user (num_embeddings: {num_users}), tweet (num_embeddings: {num_tweets}); "
        f"every relation has lhs: user and rhs: tweet\n{out}: edges: {totals}; {megabytes:.1f} MB"
    )


def main() -> int:
    """Run the command line and return the exit status.

    Raises:
      UserError: an option is invalid, or a file cannot be read or written.
    """
    parser = ArgumentParser(prog="python -m projects.twhin.tools.generate", description=DESCRIPTION)
    parser.add_argument("--out", type=user_path, required=True, help="directory to create; must be empty if it exists")
    parser.add_argument("--seed", type=seed_number, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--users", type=at_least_1, default=40_000, help="number of users (default: %(default)s)")
    parser.add_argument("--tweets", type=at_least_1, default=20_000, help="number of tweets (default: %(default)s)")
    parser.add_argument(
        "--edges", type=at_least_1, default=500_000, help="number of edges in all splits (default: %(default)s)"
    )
    options = parser.parse_args()
    edge_counts = generate(options.out, options.seed, options.users, options.tweets, options.edges)
    print_report(report(options.out, options.users, options.tweets, edge_counts) + "\n")
    return 0


if __name__ == "__main__":
    run(main, "starts over", one_process=True)
