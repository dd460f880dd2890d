"""Draws the users and items of a synthetic click log, who appear over a week.

Owns their hidden traits. clicks.py draws impressions from them.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]

DAY, DAYS = 86_400, 7
"""Seconds of a day, and days of the log."""

ROWS_PER_USER, ROWS_PER_ITEM, ROWS_PER_BRAND = 16, 40, 200
NUM_CATEGORIES, KINDS, NUM_COUNTRIES, NUM_REGIONS = 48, 6, 40, 300
TASTE_DIMS = 8
MAX_LAST_ITEMS = 20
_USERS_AT_ONCE = 4096


class Population(NamedTuple):
    """The users and items of a log, ordered by the time at which they appear.

    All arrays are [users] or [items], but tastes are [.., TASTE_DIMS], and histories [users, MAX_LAST_ITEMS], filled
    from the right with indices of items, and -1 on the left. `..._by_popularity` are the indices of those that exist at
    the start of the log, the most popular one first.
    """

    user_start: Floats
    user_taste: Floats
    user_bias: Floats
    user_country: Array
    user_region: Array
    user_phone: Floats
    user_age: Floats
    user_visits: Floats
    user_spend: Floats
    user_favorite: Array
    user_history: Array
    user_by_popularity: Array
    item_start: Floats
    item_taste: Floats
    item_category: Array
    item_brand: Array
    item_appeal: Floats
    item_worth: Floats
    item_price: Floats
    item_video: Array
    item_by_popularity: Array


def make_clickers(rng: np.random.Generator, num_rows: int) -> Population:
    """Draw users and items for `num_rows` impressions."""
    num_users, num_items = max(50, num_rows // ROWS_PER_USER), max(100, num_rows // ROWS_PER_ITEM)
    topics = rng.standard_normal((NUM_CATEGORIES // KINDS, TASTE_DIMS))
    centers = np.repeat(topics, KINDS, axis=0) + 0.4 * rng.standard_normal((NUM_CATEGORIES, TASTE_DIMS))
    category = heavy_indices(rng, NUM_CATEGORIES, num_items, 1.5)
    item_taste = _unit(centers[category] + 0.5 * rng.standard_normal((num_items, TASTE_DIMS)))
    favorites = heavy_indices(rng, NUM_CATEGORIES, (num_users, 2), 1.3)
    tastes = centers[favorites].sum(axis=1) + 0.5 * rng.standard_normal((num_users, TASTE_DIMS))
    user_taste = _unit(tastes)
    num_brands = max(20, num_rows // ROWS_PER_BRAND)
    brand_appeal = rng.standard_normal(num_brands)
    brand = heavy_indices(rng, num_brands, num_items, 2.0)
    user_bias = rng.standard_normal(num_users)
    visits = rng.standard_normal(num_users)
    buys = rng.random(num_users) < 0.25
    user_start = _starts(rng, num_users, share=0.85, days=700.0)
    item_start = _starts(rng, num_items, share=0.75, days=60.0)
    num_early_users, num_early_items = (int(np.searchsorted(starts, 0.0)) for starts in (user_start, item_start))
    return Population(
        user_start=user_start,
        user_taste=user_taste,
        user_bias=user_bias,
        user_country=heavy_indices(rng, NUM_COUNTRIES, num_users, 2.0),
        user_region=heavy_indices(rng, NUM_REGIONS, num_users, 1.5),
        user_phone=rng.random(num_users),
        user_age=np.where(rng.random(num_users) < 0.2, np.nan, np.clip(rng.gamma(6.0, 6.0, num_users), 14, 95)),
        user_visits=np.exp(1.5 + 1.2 * visits),
        user_spend=np.where(buys, np.exp(3.0 + 1.5 * rng.standard_normal(num_users) + 0.3 * visits), 0.0),
        user_favorite=favorites[:, 0],
        user_history=_histories(rng, user_bias, user_taste, item_taste, num_early_items),
        user_by_popularity=rng.permutation(num_early_users),
        item_start=item_start,
        item_taste=item_taste,
        item_category=category,
        item_brand=brand,
        item_appeal=0.7 * rng.standard_normal(num_items) + 0.7 * brand_appeal[brand],
        item_worth=rng.standard_normal(num_items),
        item_price=np.exp(2.5 + 0.6 * (category % 6) / 2 + 0.9 * rng.standard_normal(num_items)),
        item_video=rng.random(num_items) < 0.3,
        item_by_popularity=rng.permutation(num_early_items),
    )


def _starts(rng: np.random.Generator, count: int, share: float, days: float) -> Floats:
    """Draw when users or items appear, in seconds from the start of the log: a share before it, the others in it."""
    num_before = int(share * count)
    before = -rng.exponential(days * DAY, num_before)
    return np.sort(np.concatenate([before, rng.random(count - num_before) * DAYS * DAY]))


def _histories(
    rng: np.random.Generator, user_bias: Floats, user_taste: Floats, item_taste: Floats, num_items: int
) -> Array:
    """Draw what users had clicked before: for each click, the item out of four that they like best."""
    num_users = len(user_taste)
    histories = np.full((num_users, MAX_LAST_ITEMS), -1, np.int32)
    lengths = np.minimum((10.0 * rng.exponential(np.exp(0.5 * user_bias))).astype(np.int64), MAX_LAST_ITEMS)
    for first in range(0, num_users, _USERS_AT_ONCE):
        rows = slice(first, min(first + _USERS_AT_ONCE, num_users))
        choices = heavy_indices(rng, num_items, (rows.stop - first, MAX_LAST_ITEMS, 4), 2.0)
        liking = np.einsum("ud,uncd->unc", user_taste[rows], item_taste[choices])
        best = np.take_along_axis(choices, liking.argmax(axis=2)[..., None], axis=2)[..., 0]
        is_there = np.arange(MAX_LAST_ITEMS) >= MAX_LAST_ITEMS - lengths[rows, None]
        histories[rows] = np.where(is_there, best, -1)
    return histories


def heavy_indices(rng: np.random.Generator, count: int, shape: Any, power: float) -> Array:
    """Draw indices in [0, count) whose popularity falls as index ** (1 / power - 1)."""
    return np.asarray((count * rng.random(shape) ** power).astype(np.int64))


def _unit(vectors: Floats) -> Floats:
    """Scale vectors so that the product of two independent ones has variance 1."""
    scale = TASTE_DIMS**0.25 / np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return np.asarray(vectors * scale)
