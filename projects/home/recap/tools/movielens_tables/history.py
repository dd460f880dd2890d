"""What was known of a user and a film when a rating was given: features from strictly earlier ratings.

Ratings with the same timestamp know nothing of each other. Does not know files (movielens_files.py) nor what a model
does with the features.
"""

import numpy as np
from numpy.typing import NDArray

HISTORY = (
    "user_ratings",
    "item_ratings",
    "user_offset",
    "item_offset",
    "genre_affinity",
    "neighbour_affinity",
    "seconds_since_first",
    "seconds_since_last",
)
"""The columns of history_features()."""

# Strengths, in ratings, with which an estimate is pulled to 0 (shrinkage as in Koren 2010, "Factor in the neighbors").
_OFFSET_STRENGTH = 5.0
_SIMILARITY_STRENGTH = 10.0

# The mean rating before any is known counts as one rating.
_FIRST_MEAN = 3.5


def history_features(
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    rating: NDArray[np.float64],
    timestamp: NDArray[np.int64],
    genres: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """HISTORY of each rating, [ratings, HISTORY].

    With m the mean of all earlier ratings (and one of 3.5 stars), each made of strictly earlier ratings:

    - user_ratings, item_ratings: how many the user gave, the film got.
    - item_offset: sum of (rating - m) over the film's, divided by their number + 5.
    - user_offset: sum of (rating - m' - item_offset') over the user's, divided by their number + 5, where the primed
      are those that were known when that rating was given. Its rest is rating - m' - item_offset' - user_offset'.
    - genre_affinity: for each genre of the film the sum of rests over the user's ratings in it, divided by their
      number + 5; the mean over the genres, 0 where there are none.
    - neighbour_affinity: sum of s * rest over the user's ratings, divided by the sum of |s| + 1, where the similarity s
      of two films is the sum of rest * rest over the users who rated both, divided by their number + 10.
    - seconds_since_first, seconds_since_last: since the user's first and last rating; NaN where there is none.

    Args:
      user, item: [ratings], from 0 on.
      rating: [ratings], stars.
      timestamp: [ratings], seconds, ascending.
      genres: [films, genres], which genres a film has.
    """
    history = _History(np.bincount(user), genres)
    features = np.empty((len(user), len(HISTORY)))
    first = np.flatnonzero(np.diff(timestamp, prepend=timestamp[:1] - 1))
    for start, stop in zip(first, [*first[1:], len(user)], strict=True):
        # All ratings of a moment are described before any of them is added.
        moment = range(start, stop)
        for row in moment:
            features[row] = history.describe(user[row], item[row], timestamp[row])
        mean = history.mean
        for row in moment:
            _, _, user_offset, item_offset, *_ = features[row]
            offset = rating[row] - mean - item_offset
            history.add(user[row], item[row], rating[row], timestamp[row], offset, offset - user_offset)
    return features


class _History:
    """Sums over the ratings so far."""

    def __init__(self, capacity: NDArray[np.int64], genres: NDArray[np.bool_]) -> None:
        """capacity: [users], the ratings that a user will have in the end."""
        num_users, (num_items, num_genres) = len(capacity), genres.shape
        self._genres = [np.flatnonzero(flags) for flags in genres]
        self._num_ratings = 1
        self._rating_sum = _FIRST_MEAN
        self._item_ratings = np.zeros(num_items)
        self._item_rating_sum = np.zeros(num_items)
        self._user_offset_sum = np.zeros(num_users)
        self._first = np.full(num_users, np.nan)
        self._last = np.full(num_users, np.nan)
        self._genre_ratings = np.zeros((num_users, num_genres))
        self._genre_rest_sum = np.zeros((num_users, num_genres))
        # The films that a user has rated and the rests of these ratings, the first _user_ratings of each array.
        self._user_ratings = np.zeros(num_users, np.int64)
        self._user_items = [np.empty(size, np.int64) for size in capacity]
        self._user_rests = [np.empty(size) for size in capacity]
        # Over the users who rated both films of a pair.
        self._pair_ratings = np.zeros((num_items, num_items))
        self._pair_products = np.zeros((num_items, num_items))

    @property
    def mean(self) -> float:
        return self._rating_sum / self._num_ratings

    def describe(self, user: int, item: int, timestamp: int) -> tuple[float, ...]:
        """HISTORY of a rating that `user` is about to give."""
        user_ratings, item_ratings = self._user_ratings[user], self._item_ratings[item]
        item_sum = self._item_rating_sum[item] - item_ratings * self.mean
        genres = self._genres[item]
        affinities = self._genre_rest_sum[user, genres] / (self._genre_ratings[user, genres] + _OFFSET_STRENGTH)
        rated, rests = self._user_items[user][:user_ratings], self._user_rests[user][:user_ratings]
        similarity = self._pair_products[item, rated] / (self._pair_ratings[item, rated] + _SIMILARITY_STRENGTH)
        return (
            user_ratings,
            item_ratings,
            self._user_offset_sum[user] / (user_ratings + _OFFSET_STRENGTH),
            item_sum / (item_ratings + _OFFSET_STRENGTH),
            affinities.mean() if len(genres) else 0.0,
            (similarity * rests).sum() / (np.abs(similarity).sum() + 1.0),
            timestamp - self._first[user],
            timestamp - self._last[user],
        )

    def add(self, user: int, item: int, rating: float, timestamp: int, offset: float, rest: float) -> None:
        """Counts a rating; `offset` and `rest` as in history_features()."""
        self._num_ratings += 1
        self._rating_sum += rating
        self._item_ratings[item] += 1
        self._item_rating_sum[item] += rating
        self._user_offset_sum[user] += offset
        if np.isnan(self._first[user]):
            self._first[user] = timestamp
        self._last[user] = timestamp
        self._genre_ratings[user, self._genres[item]] += 1
        self._genre_rest_sum[user, self._genres[item]] += rest
        user_ratings = self._user_ratings[user]
        rated, products = self._user_items[user][:user_ratings], rest * self._user_rests[user][:user_ratings]
        self._pair_ratings[item, rated] += 1
        self._pair_ratings[rated, item] += 1
        self._pair_products[item, rated] += products
        self._pair_products[rated, item] += products
        self._user_items[user][user_ratings] = item
        self._user_rests[user][user_ratings] = rest
        self._user_ratings[user] += 1
