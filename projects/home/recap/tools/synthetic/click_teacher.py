"""The hidden teacher of the click log: computes the log-odds of each label from what is true of an impression.

The log-odds of a click are a sum of

- the liking: the product of the tastes of the user and the item, which a model must learn from ids, the categories and
  the user's last items;
- biases of the user, and an appeal of the item that is partly its brand's;
- the position, the age of the item in some categories, friends, and discounts, which the young like more;
- the price, whose effect depends on the category: it attracts in some, and repels in others;
- the hour, whose effect depends on the device; a random effect of each pair of a country and a category, and of each
  region; the number of visits, for which a middle is best.

A purchase needs a click. Its log-odds depend on the liking, the worth of the item, what the user spent, the price,
discounts and the device. Random effects come from a fixed seed, so they are the same in all logs.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]


class Impressions(NamedTuple):
    """Holds the traits of each impression, its user and its item, [rows] each."""

    liking: Floats
    user_bias: Floats
    appeal: Floats
    worth: Floats
    category: Array
    country: Array
    region: Array
    device: Array
    age: Floats
    visits: Floats
    spend: Floats
    price: Floats
    discount: Floats
    item_age_hours: Floats
    video: Array
    friends: Array
    position: Array
    hour: Floats


_effects = np.random.default_rng(20260302)
_PRICE = 0.5 * _effects.choice([-1.5, -1.0, 0.0, 1.0], 48)
_COUNTRY = 0.3 * _effects.standard_normal((40, 48))
_REGION = 0.25 * _effects.standard_normal(300)


def click_log_odds(shown: Impressions) -> Floats:
    """Return the log-odds of a click, float64 [rows]."""
    log_price = np.log(shown.price) - 3.2
    evening = np.sin((shown.hour - 14.0) * np.pi / 12.0)
    is_young = np.nan_to_num(shown.age, nan=40.0) < 28
    is_news = shown.category // 6 == 4
    return np.asarray(
        -1.75
        + 1.2 * shown.liking
        + 0.4 * shown.user_bias
        + 0.4 * shown.appeal
        - 0.55 * np.log(shown.position)
        + _PRICE[shown.category] * log_price
        + np.where(is_news, 1.6, 0.5) * np.exp(-shown.item_age_hours / 24.0)
        + np.where(shown.device == 0, 0.4, -0.4) * evening
        + 0.7 * np.log1p(shown.friends)
        + np.where(is_young, 0.04, 0.012) * shown.discount
        + _COUNTRY[shown.country, shown.category]
        + _REGION[shown.region]
        - 0.12 * np.square(np.log1p(shown.visits) - 2.0)
        + np.where(shown.video & (shown.device == 0), 0.3, 0.0)
    )


def purchase_log_odds(shown: Impressions) -> Floats:
    """Return the log-odds of a purchase after a click, float64 [rows]."""
    has_spent = shown.spend > 0
    return np.asarray(
        -1.9
        + 0.5 * shown.liking
        + 0.6 * shown.worth
        + np.where(has_spent, 0.25 * np.log1p(shown.spend), -0.3)
        - np.where(has_spent, 0.2, 0.6) * (np.log(shown.price) - 3.2)
        + 0.03 * shown.discount
        + np.where(shown.device == 1, 0.4, 0.0)
    )
