import re

import pytest
import torch

from common.errors import ConfigError
from projects.home.recap.data.schema import FeatureWidths
from projects.home.recap.model.config import SmallEmbeddingsConfig
from projects.home.recap.model.small_embeddings import SmallEmbeddings, check_table_indices, smallest_table_sizes


def small_embeddings() -> SmallEmbeddings:
    """Create three tables, two of them for one feature. The names would clash with attributes or paths of a module."""
    sizes = (("type", 400, 3, 2), ("user.country", 100, 2, 0), ("country/coarse", 100, 1, 0))
    tables = [
        {"name": name, "num_embeddings": rows, "embedding_dim": width, "index": index}
        for name, rows, width, index in sizes
    ]
    return SmallEmbeddings(SmallEmbeddingsConfig.model_validate({"tables": tables}))


def test_each_table_looks_up_its_own_feature() -> None:
    embeddings = small_embeddings()
    kind, country, coarse = embeddings.parameters()
    discrete = torch.tensor([[0, -7, 399], [99, 2**40, 5]])
    outputs = embeddings(discrete)
    assert outputs.shape == (2, sum(embeddings.widths)) == (2, 6)
    expected = [torch.cat([kind[399], country[0], coarse[0]]), torch.cat([kind[5], country[99], coarse[99]])]
    assert torch.equal(outputs, torch.stack(expected))


def test_gradients_are_dense_and_nonzero_only_for_rows_looked_up() -> None:
    embeddings = small_embeddings()
    embeddings(torch.tensor([[3, 0, 7], [3, 0, 8]])).sum().backward()
    _, country, _ = embeddings.parameters()
    assert country.grad is not None
    assert country.grad.layout == torch.strided
    expected = torch.zeros(100, 2)
    expected[3] = 2
    assert torch.equal(country.grad, expected)


def test_initial_weights_are_uniform_with_the_documented_bound() -> None:
    torch.manual_seed(0)
    weights = next(small_embeddings().parameters()).double()
    bound = 400**-0.5
    assert weights.abs().max() <= bound
    assert abs(weights.std().item() / (bound / 3**0.5) - 1) < 0.1, "the standard deviation of a uniform distribution"


def test_weights_are_named_after_their_tables() -> None:
    assert list(small_embeddings().state_dict()) == [
        "tables.table/type.weight",
        "tables.table/user/country.weight",
        "tables.table/country/coarse.weight",
    ]


def tables(*tables: tuple[str, int, int]) -> SmallEmbeddingsConfig:
    """Return a configuration of tables, given (name, num_embeddings, index) of each."""
    return SmallEmbeddingsConfig.model_validate(
        {"tables": [{"name": n, "num_embeddings": size, "embedding_dim": 2, "index": i} for n, size, i in tables]}
    )


def test_the_smallest_table_limits_the_ids_of_its_feature() -> None:
    assert smallest_table_sizes(tables(("large", 10**9, 1), ("small", 5, 1), ("other", 7, 0))) == {1: 5, 0: 7}


@pytest.mark.parametrize(("width", "index", "found"), [(2, 2, "2 discrete features"), (0, 0, "no discrete features")])
def test_a_table_for_a_feature_that_the_data_lacks_is_an_error(width: int, index: int, found: str) -> None:
    config = tables(("country", 3, index))
    with pytest.raises(ConfigError) as caught:
        check_table_indices(config, FeatureWidths(6, 4, {}, width), "train_data")
    message = str(caught.value)
    assert re.match(
        rf"model\.small_embeddings\.tables: .*\bcountry has index {index}\b.*train_data has {found}", message
    )
    assert "train_data.seg_dense_schema" in message
    check_table_indices(config, FeatureWidths(6, 4, {}, index + 1), "train_data")
