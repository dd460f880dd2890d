"""Runs tests.support.trap, with partitions of top k so small that a little data has several of them."""

from projects.home.recap.predict import top_k_files
from tests.support import trap

SMALL_PARTITIONS = "tests.support.small_partitions"

if __name__ == "__main__":
    top_k_files.num_partitions.__defaults__ = (40_000,)
    trap.main()
