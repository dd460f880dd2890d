"""Draws synthetic users, authors and impressions: all feature columns of the default data.

Owns the distributions of the features. teacher.py computes label probabilities, and tools/generate.py draws the labels
and writes the files.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from projects.home.recap.data.parquet import Widths
from projects.home.recap.tools.synthetic.teacher import BINARY, CONTINUOUS, TASTE_DIMS

Array = NDArray[Any]
Floats = NDArray[np.float64]

NUM_USERS = 20_000
NUM_AUTHORS = 5_000
NUM_ECHOES = 24
"""Number of continuous columns after the named ones: noisy copies that imitate counts over other time windows."""
NUM_LANGUAGES, NUM_TOPICS, NUM_CLIENTS = 40, 64, 6


class Population(NamedTuple):
    """The users and authors.

    Tastes and habits are [people, embedding width], rounded as they are stored. Languages are indices [people]. All
    other traits are standard normals [people].
    """

    user_taste: Array
    user_habit: Array
    user_activity: Floats
    user_talk: Floats
    user_video: Floats
    user_anger: Floats
    user_language: Array
    author_taste: Array
    author_fame: Floats
    author_quality: Floats
    author_debate: Floats
    author_media: Floats
    author_language: Array


def make_population(seed: int, widths: Widths) -> Population:
    """Draw the users and authors from `seed`. All files share them."""
    rng = np.random.default_rng([seed, 0])
    taste = _tastes(rng, NUM_USERS)
    return Population(
        user_taste=_stored_taste(rng, taste, widths.embedding),
        user_habit=_stored_taste(rng, 0.5 * taste + 0.9 * _tastes(rng, NUM_USERS), widths.embedding),
        user_activity=rng.standard_normal(NUM_USERS),
        user_talk=rng.standard_normal(NUM_USERS),
        user_video=rng.standard_normal(NUM_USERS),
        user_anger=rng.standard_normal(NUM_USERS),
        user_language=_heavy_index(rng, NUM_LANGUAGES, NUM_USERS, 3.0),
        author_taste=_stored_taste(rng, _tastes(rng, NUM_AUTHORS), widths.embedding),
        author_fame=rng.standard_normal(NUM_AUTHORS),
        author_quality=rng.standard_normal(NUM_AUTHORS),
        author_debate=rng.standard_normal(NUM_AUTHORS),
        author_media=rng.standard_normal(NUM_AUTHORS),
        author_language=_heavy_index(rng, NUM_LANGUAGES, NUM_AUTHORS, 3.0),
    )


def draw_impressions(rng: np.random.Generator, people: Population, widths: Widths, num_rows: int) -> dict[str, Array]:
    """Draw `num_rows` impressions: the feature columns, meta__user_id and meta__author_id, by name."""
    user = _heavy_index(rng, NUM_USERS, num_rows, 1.5)
    author = _heavy_index(rng, NUM_AUTHORS, num_rows, 2.0)
    taste, author_taste = people.user_taste[user], people.author_taste[author]
    affinity = np.einsum("ij,ij->i", taste, author_taste, dtype=np.float64) / TASTE_DIMS
    flags = _draw_flags(rng, people, user, author, affinity)
    logs = _draw_logs(rng, people, user, author, affinity, flags)
    return {
        "continuous": _continuous(rng, logs, widths.continuous),
        "binary": _binary(rng, flags, widths.binary),
        "discrete": _discrete(rng, people, user, author, widths.discrete),
        "user_embedding": taste,
        "user_eng_embedding": people.user_habit[user],
        "author_embedding": author_taste,
        "meta__user_id": (user + 1).astype(np.int64),
        "meta__author_id": (author + NUM_USERS + 1).astype(np.int64),
    }


def _draw_flags(
    rng: np.random.Generator, people: Population, user: Array, author: Array, affinity: Floats
) -> dict[str, Array]:
    def chance(log_odds: Floats | float) -> Array:
        return np.asarray(rng.random(len(user)) < 1.0 / (1.0 + np.exp(-np.asarray(log_odds))))

    media = people.author_media[author]
    has_video = chance(media - 1.5)
    in_network = chance(2.0 * affinity)
    return {
        "has_image": chance(0.5 * media) & ~has_video,
        "has_video": has_video,
        "has_link": chance(-0.7 - 0.5 * media),
        "has_hashtag": chance(-1.0),
        "is_reply": chance(people.author_debate[author] - 1.5),
        "is_retweet": chance(-1.5),
        "in_network": in_network,
        "author_follows_user": in_network & chance(-1.5 - 0.5 * people.author_fame[author]),
        "author_is_verified": chance(people.author_fame[author] - 1.0),
        "user_is_mobile": chance(1.0),
    }


def _draw_logs(
    rng: np.random.Generator,
    people: Population,
    user: Array,
    author: Array,
    affinity: Floats,
    flags: dict[str, Array],
) -> dict[str, Floats]:
    """Draw log(1 + x) of the named continuous columns, before rounding."""

    def noise(scale: float) -> Floats:
        return scale * rng.standard_normal(len(user))

    activity, talk = people.user_activity[user], people.user_talk[user]
    fame, quality, debate = (
        people.author_fame[author],
        people.author_quality[author],
        people.author_debate[author],
    )
    age = 3.8 + noise(1.3)
    favs = 3.6 + 0.7 * fame + 0.4 * quality + 0.4 * (age - 3.8) + noise(1.2)
    familiar = np.where(flags["in_network"], 0.3 + 0.7 * affinity + 0.3 * activity + noise(0.8), noise(0.4) - 0.6)
    return {
        "author_followers": 6.5 + 2.0 * fame,
        "author_following": 5.5 + noise(1.0),
        "author_age_days": 6.8 + noise(0.8),
        "author_favs_per_tweet": 2.0 + quality,
        "author_replies_per_tweet": 1.5 + 0.8 * debate,
        "author_tweets_per_day": 1.5 + noise(0.8),
        "user_followers": 4.5 + activity + noise(1.0),
        "user_following": 5.3 + 0.5 * activity + noise(0.7),
        "user_age_days": 6.5 + noise(0.9),
        "user_favs_30d": 3.0 + 1.2 * activity,
        "user_replies_30d": 1.7 + talk + 0.2 * activity,
        "user_retweets_30d": 1.5 + activity + noise(0.7),
        "user_video_seconds_30d": 4.0 + people.user_video[user],
        "user_sessions_7d": 2.5 + 0.6 * activity + noise(0.3),
        "user_dislikes_90d": people.user_anger[user] - 0.5,
        "tweet_age_minutes": age,
        "tweet_favs": favs,
        "tweet_replies": 0.6 * favs + 0.6 * debate + noise(0.7),
        "tweet_retweets": favs - 1.2 + noise(0.7),
        "tweet_characters": 4.5 + noise(0.6),
        "tweet_video_seconds": np.where(flags["has_video"], 3.7 + noise(1.0), 0.0),
        "tweet_reports": 0.3 * favs + debate - 2.5 + noise(0.5),
        "pair_favs_90d": familiar,
        "pair_profile_visits_90d": 0.6 * familiar + noise(0.5) - 0.3,
    }


def _continuous(rng: np.random.Generator, logs: dict[str, Floats], width: int) -> Array:
    num_rows = len(logs[CONTINUOUS[0]])
    named = np.stack([logs[name] for name in CONTINUOUS], axis=1)
    echoed = named[:, np.arange(NUM_ECHOES) % len(CONTINUOUS)]
    echoes = 0.7 * echoed + 0.8 * rng.standard_normal((num_rows, NUM_ECHOES))
    counts = np.rint(np.expm1(np.clip(np.concatenate([named, echoes], axis=1), 0.0, 17.0)))
    return _padded(rng, counts.astype(np.float32), width)


def _binary(rng: np.random.Generator, flags: dict[str, Array], width: int) -> Array:
    named = np.stack([flags[name] for name in BINARY], axis=1).astype(np.uint8)
    noise = rng.random((len(named), max(width - len(BINARY), 0))) < 0.05
    return np.concatenate([named, noise.astype(np.uint8)], axis=1)[:, :width]


def _discrete(rng: np.random.Generator, people: Population, user: Array, author: Array, width: int) -> Array:
    topic = np.argmax(people.author_taste[author][:, :TASTE_DIMS], axis=1)
    named = [
        people.user_language[user],
        people.author_language[author],
        topic * (NUM_TOPICS // TASTE_DIMS) + rng.integers(0, NUM_TOPICS // TASTE_DIMS, len(user)),
        rng.integers(0, NUM_CLIENTS, len(user)),
    ]
    return _padded(rng, np.stack(named, axis=1).astype(np.int64), width)


def _padded(rng: np.random.Generator, named: Array, width: int) -> Array:
    """Extend `named` with mostly zero columns to [rows, width], as in wide production records."""
    num_rows, num_named = named.shape
    padded = np.zeros((num_rows, width), named.dtype)
    padded[:, :num_named] = named
    num_filled = num_rows * (width - num_named) // 50
    if num_filled:
        rows, positions = rng.integers(0, num_rows, num_filled), rng.integers(num_named, width, num_filled)
        padded[rows, positions] = np.rint(np.exp(rng.exponential(1.5, num_filled)))
    return padded


def _heavy_index(rng: np.random.Generator, count: int, num_draws: int, power: float) -> Array:
    """Draw indices in [0, count) whose popularity falls as index ** (1 / power - 1)."""
    return (count * rng.random(num_draws) ** power).astype(np.int64)


def _tastes(rng: np.random.Generator, num_people: int) -> Floats:
    """Draw tastes [people, TASTE_DIMS] in which a few broad interests matter more than many narrow ones."""
    spectrum = 1.0 / (1.0 + np.arange(TASTE_DIMS) / 3.0)
    return np.asarray(spectrum * rng.standard_normal((num_people, TASTE_DIMS)))


def _stored_taste(rng: np.random.Generator, taste: Floats, width: int) -> Array:
    """Return tastes as float32 [people, width]: centered, with norm sqrt(TASTE_DIMS), padded with faint noise.

    A layer norm leaves such vectors unchanged. Rounding to 1/64 cuts the size of the files to a third.
    """
    taste = taste - taste.mean(axis=1, keepdims=True)
    taste *= np.sqrt(TASTE_DIMS / np.square(taste).sum(axis=1, keepdims=True))
    noise = 0.02 * rng.standard_normal((len(taste), width - TASTE_DIMS))
    rounded = np.rint(64 * np.concatenate([taste, noise], axis=1)) / 64
    return np.asarray(rounded, dtype=np.float32)
