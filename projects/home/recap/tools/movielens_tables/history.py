"""Computes features of a user and a film from the ratings before a given rating.

Only ratings with a strictly earlier timestamp count, so ratings with the same timestamp do not influence each other.
files.py reads the files.
"""

import numpy as np
from numpy.typing import NDArray

HISTORY = (
    "user_ratings",
    "item_ratings",
    "user_offset",
    "item_offset",
    "genre_affinity",
    "neighbor_affinity",
    "seconds_since_first",
    "seconds_since_last",
)
"""Names of the columns of history_features()."""

# Shrinkage: an estimate is pulled to 0 as if by this number of ratings (Koren 2010, "Factor in the Neighbors").
_OFFSET_STRENGTH = 5.0
_SIMILARITY_STRENGTH = 10.0

# The prior mean counts as one rating.
_FIRST_MEAN = 3.5


def history_features(
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    rating: NDArray[np.float64],
    timestamp: NDArray[np.int64],
    genres: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the columns HISTORY for each rating, float64 [ratings, HISTORY].

    All sums run over strictly earlier ratings. m is the mean of all earlier ratings and of one prior rating of 3.5
    stars.

    - user_ratings, item_ratings: number of ratings that the user gave and that the film received.
    - item_offset: sum of (rating - m) over the ratings of the film, divided by (their number + 5).
    - user_offset: sum of (rating - m' - item_offset') over the ratings of the user, divided by (their number + 5).
      Primed values are those at the time of the summed rating. The residual of a rating is
      rating - m' - item_offset' - user_offset'.
    - genre_affinity: for each genre of the film, the sum of the residuals of the user's ratings in that genre, divided
      by (their number + 5); then the mean over the genres, 0 if the film has none.
    - neighbor_affinity: sum of s * residual over the user's ratings, divided by (sum of |s| + 1). The similarity s of
      two films is the sum of residual * residual over the users who rated both, divided by (their number + 10).
    - seconds_since_first, seconds_since_last: time since the user's first and last rating, NaN if there is none.

    Args:
      user: position of the user, from 0, [ratings].
      item: position of the film, from 0, [ratings].
      rating: stars, [ratings].
      timestamp: seconds, ascending, [ratings].
      genres: genre flags of each film, [films, genres].
    """
    history = _History(np.bincount(user), genres)
    features = np.empty((len(user), len(HISTORY)))
    first = np.flatnonzero(np.diff(timestamp, prepend=timestamp[:1] - 1))
    for start, stop in zip(first, [*first[1:], len(user)], strict=True):
        # Describe all ratings with the same timestamp before adding any of them.
        same_time = range(start, stop)
        for row in same_time:
            features[row] = history.describe(user[row], item[row], timestamp[row])
        mean = history.mean
        for row in same_time:
            _, _, user_offset, item_offset, *_ = features[row]
            offset = rating[row] - mean - item_offset
            history.add(user[row], item[row], rating[row], timestamp[row], offset, offset - user_offset)
    return features


class _History:
    """Running sums over the ratings added so far."""

    def __init__(self, capacity: NDArray[np.int64], genres: NDArray[np.bool_]) -> None:
        """Start without ratings.

        Args:
          capacity: number of ratings that each user will have in the end, [users].
          genres: genre flags of each film, [films, genres].
        """
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
        self._genre_residual_sum = np.zeros((num_users, num_genres))
        # Films that each user rated, and the residuals of these ratings: the first _user_ratings of each array are set.
        self._user_ratings = np.zeros(num_users, np.int64)
        self._user_items = [np.empty(size, np.int64) for size in capacity]
        self._user_residuals = [np.empty(size) for size in capacity]
        # Sums over the users who rated both films of a pair.
        self._pair_ratings = np.zeros((num_items, num_items))
        self._pair_products = np.zeros((num_items, num_items))

    @property
    def mean(self) -> float:
        """Mean of the ratings so far, including the prior."""
        return self._rating_sum / self._num_ratings

    def describe(self, user: int, item: int, timestamp: int) -> tuple[float, ...]:
        """Return HISTORY for a rating that `user` is about to give."""
        user_ratings, item_ratings = self._user_ratings[user], self._item_ratings[item]
        item_sum = self._item_rating_sum[item] - item_ratings * self.mean
        genres = self._genres[item]
        affinities = self._genre_residual_sum[user, genres] / (self._genre_ratings[user, genres] + _OFFSET_STRENGTH)
        rated, residuals = self._user_items[user][:user_ratings], self._user_residuals[user][:user_ratings]
        similarity = self._pair_products[item, rated] / (self._pair_ratings[item, rated] + _SIMILARITY_STRENGTH)
        return (
            user_ratings,
            item_ratings,
            self._user_offset_sum[user] / (user_ratings + _OFFSET_STRENGTH),
            item_sum / (item_ratings + _OFFSET_STRENGTH),
            affinities.mean() if len(genres) else 0.0,
            (similarity * residuals).sum() / (np.abs(similarity).sum() + 1.0),
            timestamp - self._first[user],
            timestamp - self._last[user],
        )

    def add(self, user: int, item: int, rating: float, timestamp: int, offset: float, residual: float) -> None:
        """Add a rating.

        Args:
          user: position of the user.
          item: position of the film.
          rating: stars.
          timestamp: seconds.
          offset: rating - m - item_offset, as in history_features().
          residual: residual of the rating, as in history_features().
        """
        self._num_ratings += 1
        self._rating_sum += rating
        self._item_ratings[item] += 1
        self._item_rating_sum[item] += rating
        self._user_offset_sum[user] += offset
        if np.isnan(self._first[user]):
            self._first[user] = timestamp
        self._last[user] = timestamp
        self._genre_ratings[user, self._genres[item]] += 1
        self._genre_residual_sum[user, self._genres[item]] += residual
        user_ratings = self._user_ratings[user]
        rated, products = self._user_items[user][:user_ratings], residual * self._user_residuals[user][:user_ratings]
        self._pair_ratings[item, rated] += 1
        self._pair_ratings[rated, item] += 1
        self._pair_products[item, rated] += products
        self._pair_products[rated, item] += products
        self._user_items[user][user_ratings] = item
        self._user_residuals[user][user_ratings] = residual
        self._user_ratings[user] += 1
