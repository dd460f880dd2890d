"""Chooses the sizes and rates of config.yaml from the numbers of rows, features and labels.

Each function is one rule, to be tuned by itself.
"""

from dataclasses import dataclass

from common.features.config import MAX_VALUES

LANES = 12
"""Works with 1, 2, 3, 4, 6 and 12 processes, which see the same batches."""

MIN_TRAIN_ROWS = 2 * LANES
"""Rows of the smallest batch."""

HASH_COVERAGE = 0.9
"""Values are hashed if the MAX_VALUES most frequent ones cover less than this share of the occurrences."""

HASH_BUCKETS = MAX_VALUES
NUM_HASHES = 2

UNKNOWN_PSEUDO_COUNT = 5.0
"""The unknown_pseudo_count of tables with many values, whose rare ones a model memorizes otherwise."""

MAX_LENGTH = 50
"""Maximum number of values to use of a list."""


@dataclass(frozen=True)
class TableSize:
    """Sizes on which the defaults depend.

    Attributes:
      train_rows: number of rows in the training data.
      num_features: number of features.
      num_labels: number of labels.
      min_positives: number of the rarer class of the rarest label in the training data.
    """

    train_rows: int
    num_features: int
    num_labels: int
    min_positives: int


def buckets(num_numbers: int) -> int | None:
    """Return the maximum number of buckets of a number, or None if config.yaml could not hold all edges."""
    most = 150_000 // max(1, num_numbers) - 2
    return None if most < 2 else min(128, max(16, 2560 // max(1, num_numbers)), most)


def unknown_pseudo_count(num_values: int) -> float | None:
    """Return the unknown_pseudo_count of a vocabulary; None for the default of the features."""
    return UNKNOWN_PSEUDO_COUNT if num_values >= 100 else None


def min_count(train_rows: int) -> int:
    """Return the number of occurrences from which on a value gets an embedding of its own."""
    return 2 if train_rows < 1_000_000 else 5


def batch_size(size: TableSize) -> int:
    """Return the global batch size: a multiple of LANES, about 1/200 of the rows if there are many."""
    per_lane = 2 if size.train_rows < 40 * LANES else 4
    while per_lane < 128 and 200 * LANES * 2 * per_lane <= size.train_rows:
        per_lane *= 2
    return LANES * per_lane


def num_epochs(size: TableSize) -> int:
    """Return the maximum number of passes over the training data."""
    return 10 if size.train_rows < 100_000 else 6 if size.train_rows < 1_000_000 else 3


def learning_rate(size: TableSize) -> float:
    """Return the learning rate after the ramp."""
    return 0.002 if size.train_rows < 1_000_000 else 0.003


def final_learning_rate(size: TableSize) -> float:
    """Return the learning rate at the end."""
    return learning_rate(size) / 50


def weight_decay(size: TableSize) -> float:
    """Return the weight decay of AdamW."""
    return 0.1 if size.train_rows < 100_000 else 0.01


def block_size(size: TableSize) -> int:
    """Return the number of outputs of a mask block."""
    return 32 if size.train_rows < 10_000 else 64 if size.train_rows < 1_000_000 else 128


def num_blocks(size: TableSize) -> int:
    """Return the number of parallel mask blocks."""
    return 2 if size.train_rows < 10_000 else 3


def hidden_size(size: TableSize) -> int:
    """Return the number of outputs of the layer after the mask blocks."""
    return block_size(size)


def dropout(size: TableSize) -> float:
    """Return the dropout after the layer that follows the mask blocks."""
    return 0.2 if size.train_rows < 100_000 else 0.1


def patience(size: TableSize) -> int:
    """Return the number of evaluations without an improvement after which training stops."""
    return num_epochs(size) // 3
