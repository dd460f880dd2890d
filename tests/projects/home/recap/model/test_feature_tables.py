"""The tables of features against sums and means that are computed row by row."""

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from common.features.layout import NO_ROW, EmbeddingTable, FeatureLayout, Lookup
from projects.home.recap.model.feature_tables import FeatureTables


def table(name: str, rows: int, dim: int, replacement: float = 0.0) -> EmbeddingTable:
    probabilities = np.full(rows, replacement, np.float32)
    probabilities[:2] = 0
    return EmbeddingTable(name, rows, dim, probabilities)


def layout(replacement: float = 0.0) -> FeatureLayout:
    """Return a layout of a category, a list that shares its table, a category and a list with two hashes."""
    lookups = (
        Lookup("items", "items", 0),
        Lookup("last items", "items", 1, length=3, pooling="mean"),
        Lookup("a.b", "a.b", 4, num_hashes=2),
        Lookup("tags", "tags", 6, length=2, num_hashes=2, pooling="sum"),
        Lookup("mean tags", "tags", 10, length=2, num_hashes=2, pooling="mean"),
    )
    tables = (table("items", 9, 3, replacement), table("a.b", 7, 2, replacement), table("tags", 8, 4, replacement))
    return FeatureLayout((), (), (), lookups, tables, {})


IDS = torch.tensor(
    [
        [3, 4, 5, 6, 2, 3, 2, 3, 4, 5, 2, 3, 4, 5],
        [0, 8, NO_ROW, NO_ROW, 0, NO_ROW, 0, NO_ROW, 6, 7, 0, NO_ROW, 6, 7],
        [1, NO_ROW, NO_ROW, NO_ROW, 1, NO_ROW, NO_ROW, NO_ROW, NO_ROW, NO_ROW, *[NO_ROW] * 4],
        [2, 0, 1, NO_ROW, 6, 6, 2, 3, NO_ROW, NO_ROW, 2, 3, NO_ROW, NO_ROW],
    ],
    dtype=torch.int32,
)


def looked_up(tables: FeatureTables, ids: list[int]) -> torch.Tensor:
    """Return the embeddings of one row."""
    items, other, tags = (weight.detach() for weight in tables.parameters())

    def total(weight: torch.Tensor, rows: list[int]) -> torch.Tensor:
        return sum((weight[row] for row in rows if row != NO_ROW), torch.zeros(weight.shape[1]))

    def number(rows: list[int]) -> int:
        return max(1, sum(row != NO_ROW for row in rows))

    return torch.cat(
        [
            items[ids[0]],
            total(items, ids[1:4]) / number(ids[1:4]),
            total(other, ids[4:6]),
            total(tags, ids[6:10]),
            total(tags, ids[10:14]) / number(ids[10:14:2]),
        ]
    )


def test_embeddings_are_looked_up_and_pooled() -> None:
    tables = FeatureTables(layout())
    expected = torch.stack([looked_up(tables, ids) for ids in IDS.tolist()])
    found = tables(IDS)
    assert found.shape == (4, sum(tables.widths))
    torch.testing.assert_close(found, expected)


def test_gradients_are_dense_and_finite_and_only_for_rows_that_occur() -> None:
    tables = FeatureTables(layout())
    tables(IDS).sum().backward()
    items, other, tags = tables.parameters()
    for weight, columns in ((items, IDS[:, :4]), (other, IDS[:, 4:6]), (tags, IDS[:, 6:])):
        assert weight.grad is not None
        assert weight.grad.layout == torch.strided
        has_gradient = {row for row, values in enumerate(weight.grad.tolist()) if any(values)}
        assert has_gradient == {row for ids in columns.tolist() for row in ids} - {NO_ROW}
        assert weight.grad.isfinite().all()


def test_weights_are_named_after_their_tables() -> None:
    assert list(FeatureTables(layout()).state_dict()) == [
        "tables.name/items.weight",
        "tables.a/b.weight",
        "tables.tags.weight",
    ]


def test_two_names_of_tables_that_differ_only_in_dots_and_slashes_are_refused() -> None:
    lookups = (Lookup("a.b", "a.b", 0), Lookup("a/b", "a/b", 1))
    with pytest.raises(ConfigError, match="two tables differ only"):
        FeatureTables(FeatureLayout((), (), (), lookups, (table("a.b", 3, 1), table("a/b", 3, 1)), {}))


# --- Replacement ---


def with_row_numbers(tables: FeatureTables) -> FeatureTables:
    """Make the embedding of each row its number, 100 for the missing one."""
    for weight in tables.parameters():
        numbers = torch.arange(len(weight), dtype=torch.float32)
        numbers[0] = 100
        weight.data[:] = numbers[:, None]
    return tables


def test_rare_values_are_replaced_by_the_unknown_row_in_training_only() -> None:
    tables = with_row_numbers(FeatureTables(layout(replacement=0.25)))
    ids = IDS[:1].expand(4_000, -1)
    plain = tables.eval()(ids)
    assert (plain == plain[0]).all()
    torch.manual_seed(0)
    replaced = tables.train()(ids)
    item = replaced[:, 0]
    assert set(item.tolist()) == {1, 3}
    assert (item == 1).float().mean().item() == pytest.approx(0.25, abs=0.03), "five standard deviations"
    # Both hashes of a value, 2 + 3, are replaced together, by one unknown row.
    assert set(replaced[:, 6].tolist()) == {1, 5}
    torch.manual_seed(0)
    assert torch.equal(tables(ids), replaced)


def test_missing_values_and_places_without_a_value_are_never_replaced() -> None:
    tables = with_row_numbers(FeatureTables(layout(replacement=1.0))).train()
    replaced = tables(IDS)
    assert replaced[:, 0].tolist() == [1, 100, 1, 1]
    assert replaced[:, 3].tolist() == [1, 1, 0, pytest.approx((100 + 1) / 2)]
    assert replaced[:, 6].tolist() == [1, 100, 1, 1]
    assert replaced[:, 8].tolist() == [2, 101, 0, 1]


def test_no_random_numbers_are_drawn_if_nothing_is_replaced() -> None:
    torch.manual_seed(0)
    tables = FeatureTables(layout()).train()
    state = torch.get_rng_state()
    tables(IDS)
    assert torch.equal(torch.get_rng_state(), state)
