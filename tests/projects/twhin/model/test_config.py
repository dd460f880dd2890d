import pydantic
import pytest

from projects.twhin.model.config import RankingConfig


def test_hits_at_the_same_k_twice_is_refused():
    with pytest.raises(pydantic.ValidationError, match="10 is given more than once"):
        RankingConfig(hits_at=[1, 10, 10])


def test_known_edges_without_filtered_ranks_are_refused():
    with pytest.raises(pydantic.ValidationError, match="known_edges is set, but filtered is false"):
        RankingConfig(known_edges=["x"], filtered=False)
