import torch

from projects.home.recap.model.config import SmallEmbeddingsConfig
from projects.home.recap.model.small_embeddings import SmallEmbeddings


def small_embeddings() -> SmallEmbeddings:
    """Two tables of one feature, one of another; their names would be attributes or paths of a module."""
    sizes = (("type", 400, 3, 2), ("user.country", 100, 2, 0), ("country/coarse", 100, 1, 0))
    tables = [
        {"name": name, "num_embeddings": rows, "embedding_dim": width, "index": index}
        for name, rows, width, index in sizes
    ]
    return SmallEmbeddings(SmallEmbeddingsConfig.model_validate({"tables": tables}))


def test_each_table_is_looked_up_with_its_own_feature_in_order() -> None:
    embeddings = small_embeddings()
    kind, country, coarse = embeddings.parameters()
    discrete = torch.tensor([[0, -7, 399], [99, 2**40, 5]])
    outputs = embeddings(discrete)
    assert outputs.shape == (2, embeddings.out_features) == (2, 6)
    expected = [torch.cat([kind[399], country[0], coarse[0]]), torch.cat([kind[5], country[99], coarse[99]])]
    assert torch.equal(outputs, torch.stack(expected))


def test_gradients_are_dense_and_of_the_rows_looked_up() -> None:
    embeddings = small_embeddings()
    embeddings(torch.tensor([[3, 0, 7], [3, 0, 8]])).sum().backward()
    _, country, _ = embeddings.parameters()
    assert country.grad is not None
    assert country.grad.layout == torch.strided
    expected = torch.zeros(100, 2)
    expected[3] = 2
    assert torch.equal(country.grad, expected)


def test_initial_weights_are_uniform_within_the_root_of_one_over_rows() -> None:
    torch.manual_seed(0)
    weights = next(small_embeddings().parameters()).double()
    bound = 400**-0.5
    assert weights.abs().max() <= bound
    assert abs(weights.std().item() / (bound / 3**0.5) - 1) < 0.1, "the standard deviation of a uniform distribution"


def test_weights_bear_the_names_of_their_tables() -> None:
    assert list(small_embeddings().state_dict()) == [
        "tables.table/type.weight",
        "tables.table/user/country.weight",
        "tables.table/country/coarse.weight",
    ]
