"""Draws a synthetic click log: impressions, in order of time, and their labels.

Owns the columns. Users and items come from click_population.py. click_teacher.py computes the probabilities of the
labels from their traits, most of which a model can learn only through ids, categories and the user's last items.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from projects.home.recap.tools.synthetic.click_population import (
    DAY,
    DAYS,
    NUM_REGIONS,
    Population,
    heavy_indices,
    make_clickers,
)
from projects.home.recap.tools.synthetic.click_teacher import Impressions, click_log_odds, purchase_log_odds

Array = NDArray[Any]
Floats = NDArray[np.float64]

START = 1_772_409_600
"""Start of the log, in seconds since 1970-01-01 UTC: Monday, 2026-03-02."""

CHUNK_ROWS = 4096
"""Rows that are drawn together. The lists of the user's last items contain the clicks before these rows."""

CATEGORIES = tuple(
    f"{topic}/{kind}"
    for topic in ("books", "garden", "home", "music", "news", "sports", "toys", "travel")
    for kind in ("basics", "classics", "deals", "gifts", "luxury", "trends")
)
DEVICES = ("phone", "desktop", "tablet", "tv")
COUNTRIES = (
    *("US", "BR", "IN", "DE", "JP", "GB", "FR", "MX", "ID", "ES", "IT", "CA", "TR", "KR", "AU", "PL", "NL", "AR", "SE"),
    *("BE", "CH", "AT", "NO", "DK", "FI", "PT", "GR", "CZ", "RO", "HU", "IE", "NZ", "SG", "TH", "PH", "VN", "ZA", "NG"),
    *("EG", "KE"),
)

SCHEMA = pa.schema(
    [
        ("impression_id", pa.string()),
        ("ts", pa.timestamp("ms")),
        ("user_id", pa.string()),
        ("item_id", pa.int64()),
        ("country", pa.string()),
        ("region", pa.string()),
        ("device", pa.string()),
        ("user_age", pa.int64()),
        ("registered_on", pa.date32()),
        ("user_visits_7d", pa.int64()),
        ("user_spend_30d", pa.float64()),
        ("user_top_category", pa.string()),
        ("last_items", pa.list_(pa.int64())),
        ("last_categories", pa.list_(pa.string())),
        ("category", pa.string()),
        ("brand", pa.string()),
        ("price", pa.float64()),
        ("discount", pa.float64()),
        ("item_age_hours", pa.float64()),
        ("item_views_24h", pa.int64()),
        ("has_video", pa.bool_()),
        ("friends", pa.int64()),
        ("position", pa.int64()),
        ("site", pa.string()),
        ("dwell_seconds", pa.float64()),
        ("clicked", pa.int64()),
        ("bought", pa.int64()),
    ]
)
"""The columns. `dwell_seconds` is a leak: it is positive only after a click, apart from a few errors. `site` is a
constant, and `impression_id` has a value of its own in each row."""

LABELS = ("clicked", "bought")
LEAK = "dwell_seconds"


def draw_clicks(seed: int, num_rows: int) -> Iterator[tuple[pa.Table, Floats]]:
    """Yield the rows of a log in order of time, some thousands at a time.

    The rows depend only on the arguments. The number of users and items grows with the number of rows.

    Args:
      seed: seed of everything.
      num_rows: number of impressions.

    Yields:
      Rows with the columns of SCHEMA, and the true probabilities of LABELS, float64 [rows, 2].
    """
    rng = np.random.default_rng([seed, 7])
    people = make_clickers(rng, num_rows)
    hours = _hours_of_the_log()
    for first in range(0, num_rows, CHUNK_ROWS):
        index = np.arange(first, min(first + CHUNK_ROWS, num_rows))
        seconds = np.interp((index + rng.random(len(index))) / num_rows, hours, 3600.0 * np.arange(len(hours)))
        yield _draw_rows(rng, people, index, np.round(seconds, 3))


def _hours_of_the_log() -> Floats:
    """Return the share of impressions before each hour of the log, and after the last one. Evenings are busy."""
    hour = np.arange(24 * DAYS) % 24
    traffic = 1.0 + 0.8 * np.sin((hour - 13) * np.pi / 12)
    return np.asarray(np.concatenate([[0.0], np.cumsum(traffic) / traffic.sum()]))


def _draw_rows(rng: np.random.Generator, people: Population, index: Array, seconds: Floats) -> tuple[pa.Table, Floats]:
    user = _pick(rng, people.user_start, seconds, 0.1, people.user_by_popularity)
    item = _pick(rng, people.item_start, seconds, 0.25, people.item_by_popularity)
    shown = _impressions(rng, people, user, item, seconds)
    history = people.user_history[user]
    click = 1.0 / (1.0 + np.exp(-click_log_odds(shown)))
    purchase = 1.0 / (1.0 + np.exp(-purchase_log_odds(shown)))
    clicked = rng.random(len(index)) < click
    bought = clicked & (rng.random(len(index)) < purchase)
    for one_user, one_item in zip(user[clicked], item[clicked], strict=True):
        people.user_history[one_user] = np.append(people.user_history[one_user, 1:], one_item)
    columns = {
        **_id_columns(people, index, user, item, history),
        **_user_columns(rng, people, user, seconds, shown),
        **_item_columns(rng, people, item, shown),
        "ts": pa.array((1000 * (START + seconds)).astype("datetime64[ms]")),
        "site": pa.array(["shop"] * len(index)),
        LEAK: pa.array(_dwell(rng, clicked)),
        "clicked": pa.array(clicked.astype(np.int64)),
        "bought": pa.array(bought.astype(np.int64)),
    }
    table = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    return table, np.stack([click, click * purchase], axis=1)


def _impressions(
    rng: np.random.Generator, people: Population, user: Array, item: Array, seconds: Floats
) -> Impressions:
    num_rows = len(user)
    on_phone = rng.random(num_rows) < 0.25 + 0.65 * people.user_phone[user]
    liking = np.einsum("nd,nd->n", people.user_taste[user], people.item_taste[item])
    friends = rng.poisson(np.where(rng.random(num_rows) < 0.08, 2.0, 0.0))
    return Impressions(
        liking=liking,
        user_bias=people.user_bias[user],
        appeal=people.item_appeal[item],
        worth=people.item_worth[item],
        category=people.item_category[item],
        country=people.user_country[user],
        region=people.user_region[user],
        device=np.where(on_phone, 0, rng.choice([1, 2, 3], num_rows, p=[0.75, 0.2, 0.05])),
        age=people.user_age[user],
        visits=np.rint(people.user_visits[user]),
        spend=np.round(people.user_spend[user], 2),
        price=np.round(people.item_price[item], 2),
        discount=np.where(rng.random(num_rows) < 0.12, rng.choice([5.0, 10.0, 20.0, 30.0, 50.0], num_rows), 0.0),
        item_age_hours=np.round((seconds - people.item_start[item]) / 3600.0, 2),
        video=people.item_video[item],
        friends=friends,
        position=np.minimum(rng.geometric(0.15, num_rows), 30),
        hour=(seconds % DAY) / 3600.0,
    )


def _id_columns(people: Population, index: Array, user: Array, item: Array, history: Array) -> dict[str, pa.Array]:
    ids = _item_ids(people)
    is_there = history >= 0
    # Nothing is known of the past of users who appear during the log. Others without clicks have an empty list.
    is_null = (people.user_start[user] > 0) & ~is_there.any(axis=1)
    offsets = np.concatenate([[0], np.cumsum(is_there.sum(axis=1))]).astype(np.int32)
    of_history = people.item_category[history[is_there]]
    return {
        "impression_id": pa.array([f"{_scrambled(number):016x}" for number in index.tolist()]),
        "user_id": pa.array([f"u{_scrambled(number) >> 28:09x}" for number in user.tolist()]),
        "item_id": pa.array(ids[item]),
        "last_items": _lists(offsets, pa.array(ids[history[is_there]]), is_null),
        "last_categories": _lists(offsets, _words(CATEGORIES, of_history, np.zeros(len(of_history), bool)), is_null),
    }


def _user_columns(
    rng: np.random.Generator, people: Population, user: Array, seconds: Floats, shown: Impressions
) -> dict[str, pa.Array]:
    is_new = people.user_start[user] > seconds - DAY
    registered = (START + people.user_start[user]).astype("datetime64[s]").astype("datetime64[D]")
    return {
        "country": _words(COUNTRIES, shown.country, people.user_region[user] % 50 == 0),
        "region": _words([f"{code:03d}" for code in range(NUM_REGIONS)], shown.region, np.zeros(len(user), bool)),
        "device": _words(DEVICES, shown.device, rng.random(len(user)) < 0.02),
        "user_age": pa.array(np.nan_to_num(shown.age).astype(np.int64), mask=np.isnan(shown.age)),
        "registered_on": pa.array(registered),
        "user_visits_7d": pa.array(shown.visits.astype(np.int64), mask=is_new),
        "user_spend_30d": pa.array(shown.spend),
        "user_top_category": _words(CATEGORIES, people.user_favorite[user], is_new),
    }


def _item_columns(rng: np.random.Generator, people: Population, item: Array, shown: Impressions) -> dict[str, pa.Array]:
    brand = people.item_brand[item]
    views = np.exp(4.0 + 0.7 * people.item_appeal[item] + 0.9 * rng.standard_normal(len(item)))
    return {
        "category": _words(CATEGORIES, shown.category, np.zeros(len(item), bool)),
        "brand": pa.array([f"brand {number}" for number in brand.tolist()], mask=brand % 29 == 0),
        "price": pa.array(shown.price),
        "discount": pa.array(shown.discount),
        "item_age_hours": pa.array(shown.item_age_hours, mask=rng.random(len(item)) < 0.01),
        "item_views_24h": pa.array(np.rint(views).astype(np.int64)),
        "has_video": pa.array(shown.video),
        "friends": pa.array(shown.friends.astype(np.int64)),
        "position": pa.array(shown.position.astype(np.int64)),
    }


def _pick(rng: np.random.Generator, starts: Floats, seconds: Floats, newest: float, by_popularity: Array) -> Array:
    """Pick users or items that exist at the time of each row: a share of the newest ones, else by popularity."""
    available = np.searchsorted(starts, seconds)
    recent = np.maximum(available - 1 - (0.06 * available * rng.random(len(seconds)) ** 1.5).astype(np.int64), 0)
    popular = by_popularity[heavy_indices(rng, len(by_popularity), len(seconds), 2.5)]
    return np.where(rng.random(len(seconds)) < newest, recent, popular)


def _dwell(rng: np.random.Generator, clicked: Array) -> Floats:
    """Return the seconds on the page of the item: 0 without a click, and for a click in a hundred."""
    seconds = np.round(np.exp(3.0 + rng.standard_normal(len(clicked))) + 0.1, 1)
    return np.where(clicked & (rng.random(len(clicked)) >= 0.01), seconds, 0.0)


def _item_ids(people: Population) -> Array:
    """Return ids as distributed services make them: milliseconds in the upper bits, above 2^53."""
    milliseconds = (1000 * (START + people.item_start)).astype(np.int64)
    return np.asarray((milliseconds << 22) + np.arange(len(milliseconds)) % 2**22)


def _lists(offsets: Array, values: pa.Array, is_null: Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(is_null))


def _words(words: Any, index: Array, is_null: Array) -> pa.Array:
    indices = pa.array(index.astype(np.int32), mask=is_null)
    return pa.DictionaryArray.from_arrays(indices, pa.array(words)).cast(pa.string())


def _scrambled(number: int) -> int:
    """Return a 64-bit integer that differs for different numbers (the finalizer of SplitMix64)."""
    number = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31
