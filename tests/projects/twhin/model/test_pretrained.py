from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from common.checkpointing.writer import write_checkpoint
from common.errors import ConfigError, UserError
from common.files.embedding_files import write_embeddings
from common.modules.embedding.config import EmbeddingBagConfig, EmbeddingSnapshot
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.model import pretrained
from projects.twhin.model.pretrained import Rows, check_vocabulary, pretrained_rows, pretrained_source
from tests.support.toy_twhin import SGD

PLACE = "model.embeddings.tables[user]"
VALUES = np.random.default_rng(0).standard_normal((5, 4), np.float32)


def table(uri: Path | str | None = None, name: str = "user", rows: int = 8, **fields: Any) -> EmbeddingBagConfig:
    snapshot = None if uri is None else EmbeddingSnapshot(emb_name=name, embedding_snapshot_uri=str(uri))
    defaults: dict[str, Any] = {"name": "user", "num_embeddings": rows, "embedding_dim": 4, "optimizer": SGD}
    return EmbeddingBagConfig(**(defaults | fields), pretrained=snapshot)


def vocabulary(folder: Path, entities: list[Any]) -> str:
    write_vocabulary(path := folder / "vocabulary" / "user.parquet", pa.array(entities))
    return str(path)


def export(folder: Path, entities: list[Any] | None, values: np.ndarray[Any, Any] = VALUES) -> Path:
    folder.mkdir(exist_ok=True)
    write_embeddings(folder / "user.parquet", None if entities is None else pa.array(entities), values)
    return folder


def rows_of(config: EmbeddingBagConfig) -> Iterator[Rows]:
    return pretrained_rows(config, pretrained_source(config))


def started(config: EmbeddingBagConfig) -> np.ndarray[Any, Any]:
    """The table, of zeros before, after its rows were set."""
    weight = np.zeros((config.num_embeddings, config.embedding_dim), np.float32)
    for rows, values in rows_of(config):
        assert rows.dtype == np.int64
        assert values.dtype == np.float32
        weight[rows] = values
    return weight


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["a", "b", "c", "d", "e"], ["x", "d", "a", "y", "e"]),
        ([10, 11, 12, 13, 14], [0, 13, 10, 1, 14]),
        (["10", "11", "12", "13", "14"], [0, 13, 10, 1, 14]),
        ([10, 11, 12, 13, 14], ["0", "13", "10", "x", "14"]),
    ],
)
def test_by_entity_where_both_have_names(tmp_path, caplog, theirs, ours):
    config = table(export(tmp_path / "export", theirs), vocab=vocabulary(tmp_path, ours))
    weight = started(config)
    assert np.array_equal(weight[[2, 1, 4]], VALUES[[0, 3, 4]])
    assert not weight[[0, 3, 5, 6, 7]].any()
    expected = f"table user: 3 of 8 rows start from {tmp_path / 'export'}, by entity"
    assert caplog.messages == [expected]


@pytest.mark.parametrize("theirs", [True, False])
def test_by_index_where_one_has_no_names(tmp_path, theirs):
    source = export(tmp_path / "export", [4, 3, 2, 1, 0] if theirs else None)
    vocab = None if theirs else vocabulary(tmp_path, [4, 3, 2, 1, 0])
    weight = started(table(source, vocab=vocab))
    assert np.array_equal(weight[:5], VALUES)
    assert not weight[5:].any()


def test_rows_of_a_checkpoint_are_nobodys(tmp_path, caplog):
    path = write_checkpoint(tmp_path, 7, {"model.tables.embeddings.user.weight": torch.from_numpy(VALUES)}, {})
    started(table(path, vocab=vocabulary(tmp_path, [4, 3, 2, 1, 0])))
    warning, told = caplog.messages
    assert warning.startswith(f"table user starts from {path} by index, whatever its vocabulary")
    assert told == f"table user: 5 of 8 rows start from {path}, by index"


def test_a_vocabulary_of_fewer_entities_is_warned_of(tmp_path, caplog):
    check_vocabulary(table(tmp_path, vocab=vocabulary(tmp_path, [4, 3, 2])))
    (warning,) = caplog.messages
    assert warning.startswith("table user: num_embeddings is 8, but its vocabulary has 3 entities")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_of_a_checkpoint_by_index(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(pretrained, "_ROWS_PER_BLOCK", 2)
    tensors = {
        "model.tables.embeddings.user.weight": torch.from_numpy(VALUES).to(dtype),
        "model.tables.embeddings.user2.weight": torch.ones(3, 4),
    }
    path = write_checkpoint(tmp_path, 7, tensors, {})
    weight = started(table(path))
    assert np.array_equal(weight[:5], tensors["model.tables.embeddings.user.weight"].float().numpy())
    assert not weight[5:].any()
    assert np.array_equal(started(table(path, "user2"))[:3], np.ones((3, 4)))


def test_of_the_newest_checkpoint_of_a_run(tmp_path, caplog):
    for step, values in ((7, VALUES), (20, 2 * VALUES), (3, 3 * VALUES)):
        tensors = {"model.tables.embeddings.user.weight": torch.from_numpy(values)}
        write_checkpoint(tmp_path / "run" / "checkpoints", step, tensors, {})
    assert np.array_equal(started(table(tmp_path / "run"))[:5], 2 * VALUES)
    assert caplog.messages == [f"table user: 5 of 8 rows start from {tmp_path}/run/checkpoints/20, by index"]


def test_mistakes_are_told_at_the_call(tmp_path):
    source = export(tmp_path / "export", ["a", "b", "c", "d", "e"])
    checkpoint = write_checkpoint(tmp_path, 7, {"model.tables.embeddings.tweet.weight": torch.ones(9, 4)}, {})
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for config, message in [
        (table(tmp_path / "no"), f".embedding_snapshot_uri: {tmp_path}/no: no such directory (looked from "),
        (
            table(tmp_path / "empty"),
            f".embedding_snapshot_uri: {tmp_path}/empty: no complete checkpoint in {tmp_path}/empty; specify",
        ),
        (
            table(tmp_path / "run"),
            f".embedding_snapshot_uri: {tmp_path}/run: no complete checkpoint in {tmp_path}/run/",
        ),
        (table(source, "usr"), f".emb_name: {source} has no table usr; it has user"),
        (table(checkpoint), f".emb_name: {checkpoint} has no table user; it has tweet"),
        (table(source, embedding_dim=6), f": embeddings of 4 numbers in {source}/user.parquet, but embedding_dim is 6"),
        (table(checkpoint, "tweet", embedding_dim=6), f": embeddings of 4 numbers in {checkpoint}, but embedding_dim"),
        (table(checkpoint, "tweet"), f": index 8 found in {checkpoint}, but num_embeddings is 8"),
    ]:
        with pytest.raises(ConfigError) as caught:
            rows_of(config)
        assert str(caught.value).startswith(f"{PLACE}.pretrained{message}")


def test_mistakes_that_rows_show(tmp_path):
    source = export(tmp_path / "export", ["a", "b", "c", "d", "e"])
    with pytest.raises(ConfigError, match=r"^model.*: index 3 found in .*user.parquet, but num_embeddings is 3"):
        started(table(source, rows=3))
    with pytest.raises(ConfigError, match=r"^model.*pretrained: no entity of .*user.parquet is in .*; both must name"):
        started(table(source, vocab=vocabulary(tmp_path, ["A", "B"])))


def test_a_damaged_checkpoint(tmp_path):
    path = write_checkpoint(tmp_path, 7, {"model.tables.embeddings.user.weight": torch.ones(8, 4)}, {})
    next(path.glob("*.distcp")).write_bytes(b"x")
    with pytest.raises(UserError, match=f"^model.embeddings.tables.user..pretrained: {path}/.*: damaged checkpoint"):
        rows_of(table(path))


def test_a_vocabulary_is_checked(tmp_path):
    check_vocabulary(table())
    check_vocabulary(table(vocab=vocabulary(tmp_path, ["a", "b"])))
    check_vocabulary(table(rows=2, vocab=vocabulary(tmp_path, ["a", "b"])))
    with pytest.raises(ConfigError) as caught:
        check_vocabulary(table(rows=1, vocab=(path := vocabulary(tmp_path, ["a", "b"]))))
    assert str(caught.value).startswith(f"{PLACE}.vocab: {path} has 2 entities, but num_embeddings is 1; raise it, or ")
    with pytest.raises(ConfigError, match=f"vocab: {tmp_path}/no.parquet: can't be read as a vocabulary: "):
        check_vocabulary(table(vocab=str(tmp_path / "no.parquet")))
