"""The hidden teacher of the default data: computes the probability of every label from the stored columns alone.

Owns the meaning of the columns and their effect on the labels. Nothing here is random, so the probabilities can be
recomputed from the Parquet files. Reads only the first columns of each vector, so the probabilities survive
production's truncation to 2117 continuous and 59 binary columns.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONTINUOUS = (
    "author_followers",
    "author_following",
    "author_age_days",
    "author_favs_per_tweet",
    "author_replies_per_tweet",
    "author_tweets_per_day",
    "user_followers",
    "user_following",
    "user_age_days",
    "user_favs_30d",
    "user_replies_30d",
    "user_retweets_30d",
    "user_video_seconds_30d",
    "user_sessions_7d",
    "user_dislikes_90d",
    "tweet_age_minutes",
    "tweet_favs",
    "tweet_replies",
    "tweet_retweets",
    "tweet_characters",
    "tweet_video_seconds",
    "tweet_reports",
    "pair_favs_90d",
    "pair_profile_visits_90d",
)
"""Names of the first continuous columns, in order. The others are noise and noisy copies of these."""

BINARY = (
    "has_image",
    "has_video",
    "has_link",
    "has_hashtag",
    "is_reply",
    "is_retweet",
    "in_network",
    "author_follows_user",
    "author_is_verified",
    "user_is_mobile",
)
"""Names of the first binary columns, in order. The others are noise."""

TASTE_DIMS = 16
"""Number of coordinates of the embeddings that hold tastes. The others are noise."""

FACTORS = {
    # Tasks: favorited, good click (engaged), good click, negative feedback,
    # profile click, replied, reply engaged, reported, retweeted, video.
    "activity": (0.70, 0.50, 0.40, 0.05, 0.30, 0.40, 0.30, 0.05, 0.80, 0.20),
    "quality": (0.50, 0.35, 0.30, -0.35, 0.30, 0.10, 0.10, -0.30, 0.55, 0.25),
    "familiarity": (0.50, 0.40, 0.20, -0.30, -0.10, 0.60, 0.70, -0.30, 0.50, 0.15),
    "taste": (0.80, 0.70, 0.45, -0.60, 0.55, 0.45, 0.40, -0.50, 0.65, 0.35),
    "habit": (0.60, 0.55, 0.50, -0.30, 0.45, 0.40, 0.40, -0.30, 0.45, 0.45),
    "discovery": (0.35, 0.30, 0.35, -0.40, 0.60, 0.20, 0.10, -0.40, 0.35, 0.25),
    "freshness": (0.90, 0.70, 0.50, 0.20, 0.30, 0.90, 0.90, 0.30, 0.80, 0.30),
    "buzz": (0.90, 0.70, 0.80, 0.30, 0.50, 0.40, 0.10, 0.40, 0.80, 0.50),
    "debate": (0.10, 0.40, 0.45, 0.40, 0.20, 0.80, 0.80, 0.60, 0.15, 0.00),
    "media": (0.40, 0.25, 0.30, -0.10, 0.30, -0.15, -0.15, -0.10, 0.30, 0.20),
    "video_fit": (0.30, 0.10, 0.10, -0.10, 0.10, 0.00, 0.00, -0.10, 0.25, 2.20),
    "video_habit": (0.15, 0.05, 0.05, -0.05, 0.05, 0.00, 0.00, 0.00, 0.10, 0.80),
    "thread": (0.25, 0.70, 0.80, 0.20, 0.10, 0.50, 0.40, 0.30, 0.05, -0.20),
    "annoyance": (-0.30, -0.20, -0.10, 0.90, -0.10, 0.00, -0.10, 1.00, -0.20, -0.10),
}
"""Weight of each factor in the log-odds of each task, in the order of parquet.TASKS."""

INTERCEPTS = (-4.71, -6.51, -5.35, -6.98, -6.04, -6.41, -8.0, -10.56, -6.67, -4.22)
"""Log-odds of each task when all factors are 0. They set the base rates, from 10% down to 0.01%."""


def teacher_probabilities(columns: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return the probability of every label, [rows, tasks] in the order of parquet.TASKS.

    Computes in float64, row by row and without BLAS, so the result does not depend on the number of threads.

    Args:
      columns: `continuous`, `binary` and the three embeddings as stored, each [rows, width].
    """
    factors = teacher_factors(columns)
    log_odds = np.tile(np.array(INTERCEPTS), (len(columns["continuous"]), 1))
    for name, weights in FACTORS.items():
        log_odds += factors[name][:, None] * np.array(weights)
    probabilities: NDArray[np.float32] = (1.0 / (1.0 + np.exp(-log_odds))).astype(np.float32)
    return probabilities


def teacher_factors(columns: dict[str, NDArray[Any]]) -> dict[str, Floats]:
    """Return the factors of the log-odds: an array [rows] for each name in FACTORS."""
    counts = columns["continuous"][:, : len(CONTINUOUS)].astype(np.float64)
    log = dict(zip(CONTINUOUS, np.log1p(counts).T, strict=True))
    flag = dict(zip(BINARY, columns["binary"][:, : len(BINARY)].T.astype(np.float64), strict=True))
    taste = _match(columns["user_embedding"], columns["author_embedding"])
    habit = _match(columns["user_eng_embedding"], columns["author_embedding"])
    return {
        "activity": (log["user_favs_30d"] - 3.0) / 1.2,
        "quality": log["author_favs_per_tweet"] - 2.0,
        "familiarity": log["pair_favs_90d"],
        "taste": taste,
        "habit": habit,
        "discovery": taste * (1.0 - flag["in_network"]),
        "freshness": _bump((log["tweet_age_minutes"] - 3.5) / 1.3),
        "buzz": _bump((log["tweet_favs"] - 4.0) / 1.5),
        "debate": (log["user_replies_30d"] - 1.7) * (log["author_replies_per_tweet"] - 1.5),
        "media": (2.0 * flag["has_image"] - 1.0) * (2.0 * flag["has_link"] - 1.0),
        "video_fit": flag["has_video"] * _bump((log["tweet_video_seconds"] - 3.5) / 0.8),
        "video_habit": flag["has_video"] * (log["user_video_seconds_30d"] - 4.0),
        "thread": 1.0 / (1.0 + np.exp(-3.0 * (log["tweet_replies"] - 3.0))),
        "annoyance": log["user_dislikes_90d"] * np.tanh(np.maximum(-taste, 0.0)),
    }


def _match(left: NDArray[Any], right: NDArray[Any]) -> Floats:
    """Return the dot product of two tastes, [rows], scaled to a variance of about 1."""
    products: Floats = left[:, :TASTE_DIMS].astype(np.float64) * right[:, :TASTE_DIMS].astype(np.float64)
    return np.asarray(products.sum(axis=1) / 6.0)


def _bump(x: Floats) -> Floats:
    """Return a bell curve that is 1 at 0 and falls to 0 on both sides."""
    return np.exp(-0.5 * x * x)
