from projects.home.recap.tools.prepare.defaults import (
    LANES,
    TableSize,
    batch_size,
    buckets,
    num_epochs,
    patience,
    unknown_pseudo_count,
)


def size(rows: int) -> TableSize:
    return TableSize(rows, num_features=10, num_labels=1, min_positives=rows // 10)


def test_more_numbers_have_fewer_buckets_each():
    assert [buckets(count) for count in (1, 20, 40, 1000, 50_000, 100_000)] == [128, 128, 64, 16, None, None]


def test_only_vocabularies_with_many_values_replace_more_values():
    assert unknown_pseudo_count(99) is None
    assert unknown_pseudo_count(100) == 5.0


def test_more_rows_have_larger_batches_and_fewer_epochs():
    rows = [100, 10_000, 200_000, 5_000_000]
    batches, epochs = [batch_size(size(count)) for count in rows], [num_epochs(size(count)) for count in rows]
    assert batches == sorted(batches)
    assert epochs == sorted(epochs, reverse=True)
    assert all(batch % LANES == 0 for batch in batches)
    assert all(1 <= patience(size(count)) <= num_epochs(size(count)) for count in rows)
