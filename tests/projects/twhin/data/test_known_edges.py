import numpy as np
import pytest
import torch

from common.errors import UserError
from common.reader.files import DataError
from projects.twhin.data.config import Relation
from projects.twhin.data.edges import edge_table
from projects.twhin.data.known_edges import KnownEdges, open_known_edges
from projects.twhin.data.relations import Relations
from tests.projects.twhin.data.test_edges import USERS, evaluated, make_edges, opened, real, relations, write

Edge = tuple[int, int, int]


def few_entities(count: int, seed: int) -> dict[str, np.ndarray]:
    """Return edges, many of which share an entity and some of which are equal."""
    columns = make_edges(count, seed)
    return {name: column % 9 if name != "rel" else column for name, column in columns.items()}


def edges_of(columns: dict[str, np.ndarray]) -> list[Edge]:
    return list(zip(*(column.tolist() for column in columns.values()), strict=True))


def pairs_of(known: KnownEdges, edges: list[Edge]) -> dict[str, list[list[int]]]:
    found = known(*torch.tensor(edges, dtype=torch.int64).reshape(-1, 3).unbind(1))
    assert all(pairs.dtype == torch.int64 for pairs in found.values())
    return {side: pairs.T.tolist() for side, pairs in found.items()}


def expected_of(every: set[Edge], edges: list[Edge]) -> dict[str, list[list[int]]]:
    return {
        "lhs": [
            [position, entity]
            for position, (_, rel, rhs) in enumerate(edges)
            for entity in sorted(lhs for lhs, *rest in every if rest == [rel, rhs])
        ],
        "rhs": [
            [position, entity]
            for position, (lhs, rel, _) in enumerate(edges)
            for entity in sorted(rhs for *rest, rhs in every if rest == [lhs, rel])
        ],
    }


def test_known_edges_of_all_tables_are_found(tmp_path):
    columns = [few_entities(count, seed) for seed, count in enumerate((70, 90, 500))]
    tables = [
        edge_table(str(write(tmp_path / f"{index}.parquet", each)), relations()) for index, each in enumerate(columns)
    ]
    known = KnownEdges(relations(), tables[:2], tables[2:])
    every = {edge for each in columns for edge in edges_of(each)}
    for edges in (edges_of(columns[0]), edges_of(columns[1])[::-1], []):
        assert pairs_of(known, edges) == expected_of(every, edges)


def test_edges_that_answer_no_query_are_ignored(tmp_path):
    queried = edge_table(str(write(tmp_path / "a.parquet", {"lhs": [1], "rel": [0], "rhs": [2]})), relations())
    others = {"lhs": [1, 3, 1, 4], "rel": [0, 0, 1, 0], "rhs": [5, 2, 2, 4]}
    known = KnownEdges(relations(), [queried], [edge_table(str(write(tmp_path / "b.parquet", others)), relations())])
    assert pairs_of(known, [(1, 0, 2)]) == {"lhs": [[0, 1], [0, 3]], "rhs": [[0, 2], [0, 5]]}
    assert pairs_of(known, [(1, 1, 2), (4, 0, 4), (0, 0, 0), (USERS - 1, 2, 499)]) == {"lhs": [], "rhs": []}


def test_without_an_queried_there_are_no_known_edges(tmp_path):
    table = edge_table(str(write(tmp_path / "a.parquet", make_edges(9))), relations())
    assert pairs_of(KnownEdges(relations(), [], [table]), [(0, 0, 0)]) == {"lhs": [], "rhs": []}


def test_edges_that_offset_and_limit_skip_are_not_known(tmp_path):
    train = opened(write(tmp_path / "train.parquet", {"lhs": [0] * 4, "rel": [0] * 4, "rhs": [5, 6, 7, 8]}), offset=1)
    validation = opened(write(tmp_path / "v.parquet", {"lhs": [0], "rel": [0], "rhs": [9]}))
    known = KnownEdges(relations(), [validation.table], [train.table])
    assert pairs_of(known, [(0, 0, 9)]) == {"lhs": [[0, 0]], "rhs": [[0, 6], [0, 7], [0, 8], [0, 9]]}


def test_a_reader_adds_known_edges_to_its_batches(tmp_path):
    dataset = opened(write(tmp_path / "a.parquet", few_entities(40, seed=0)))
    known = KnownEdges(relations(), [dataset.table], [])
    every = set(real(evaluated(dataset)))
    for positioned in dataset.reader(0, 1, known=known).evaluate():
        batch = positioned.batch
        edges = [(int(a), int(b), int(c)) for a, b, c in zip(batch.lhs, batch.rel, batch.rhs, strict=True)]
        real_edges = set(batch.weights.nonzero().flatten().tolist())
        expected = {
            side: [pair for pair in pairs if pair[0] in real_edges] for side, pairs in expected_of(every, edges).items()
        }
        assert {side: pairs.T.tolist() for side, pairs in batch.known.items()} == expected


def test_known_edges_are_checked_like_other_edges(tmp_path):
    path = write(tmp_path / "a.parquet", {"lhs": [USERS], "rel": [0], "rhs": [0]})
    (table,) = open_known_edges([str(path)], relations())
    with pytest.raises(DataError, match=f"column 'lhs': found {USERS}, but the table user has"):
        KnownEdges(relations(), [], [table])
    with pytest.raises(DataError, match=f"{tmp_path}/none"):
        open_known_edges([str(tmp_path / "none")], relations())


def test_progress_of_a_long_read_is_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("projects.twhin.data.known_edges._LOG_INTERVAL_S", 0)
    dataset = opened(write(tmp_path / "a.parquet", make_edges(40)))
    with caplog.at_level("INFO"):
        KnownEdges(relations(), [], [dataset.table])
    assert caplog.messages == [f"collecting known edges: {count} of 40 edges read" for count in (20, 40)]


def test_pairs_of_a_query_and_an_entity_that_need_more_than_64_bits_are_refused(tmp_path):
    def collected(num_rows: int) -> KnownEdges:
        huge = Relations([Relation(name="r", lhs="t", rhs="t")], {"t": num_rows}, "both")
        return KnownEdges(huge, [edge_table(str(path), huge)], [])

    num_rows = 2**61
    edges = {"lhs": [1, 2], "rel": [0, 0], "rhs": [num_rows - 1, 4]}
    path = write(tmp_path / "a.parquet", edges)
    with pytest.raises(UserError, match=r"metrics\.filtered: 2 queries and a table of .* rows are too many"):
        collected(2 * num_rows)
    known = collected(num_rows)
    assert pairs_of(known, edges_of({name: np.array(column) for name, column in edges.items()})) == {
        "lhs": [[0, 1], [1, 2]],
        "rhs": [[0, num_rows - 1], [1, 4]],
    }
