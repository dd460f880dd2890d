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

KEY_PATH = "model.embeddings.tables[user]"
UNSIGNED = np.arange(2**63, 2**63 + 5, dtype=np.uint64)
VALUES = np.random.default_rng(0).standard_normal((5, 4), np.float32)


def table(uri: Path | str | None = None, name: str = "user", rows: int = 8, **fields: Any) -> EmbeddingBagConfig:
    snapshot = None if uri is None else EmbeddingSnapshot(emb_name=name, embedding_snapshot_uri=str(uri))
    defaults: dict[str, Any] = {"name": "user", "num_embeddings": rows, "embedding_dim": 4, "optimizer": SGD}
    return EmbeddingBagConfig(**(defaults | fields), pretrained=snapshot)


def vocabulary(folder: Path, entities: Any) -> str:
    write_vocabulary(path := folder / "vocabulary" / "user.parquet", pa.array(entities))
    return str(path)


def export(folder: Path, entities: Any, values: np.ndarray[Any, Any] = VALUES) -> Path:
    folder.mkdir(exist_ok=True)
    write_embeddings(folder / "user.parquet", None if entities is None else pa.array(entities), values)
    return folder


def rows_of(config: EmbeddingBagConfig) -> Iterator[Rows]:
    return pretrained_rows(config, pretrained_source(config))


def initialized(config: EmbeddingBagConfig) -> np.ndarray[Any, Any]:
    """Return a table of zeros after the pretrained rows are set."""
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
        (UNSIGNED, UNSIGNED[[1, 3, 0, 2, 4]] - np.array([10, 0, 0, 10, 0], np.uint64)),
        (UNSIGNED, ["0", str(2**63 + 3), str(2**63), "x", str(2**63 + 4)]),
        ([10, 11, 12, 13, 14], np.array([0, 13, 10, 2**64 - 12, 14], np.uint64)),
    ],
)
def test_rows_are_matched_by_entity_if_both_sides_name_entities(tmp_path, caplog, theirs, ours):
    config = table(export(tmp_path / "export", theirs), vocab=vocabulary(tmp_path, ours))
    weight = initialized(config)
    assert np.array_equal(weight[[2, 1, 4]], VALUES[[0, 3, 4]])
    assert not weight[[0, 3, 5, 6, 7]].any()
    [message] = caplog.messages
    for fact in ("table user", "3 of 8 rows", str(tmp_path / "export"), "by entity"):
        assert fact in message


@pytest.mark.parametrize("theirs", [True, False])
def test_rows_are_matched_by_index_if_one_side_has_no_names(tmp_path, theirs):
    source = export(tmp_path / "export", [4, 3, 2, 1, 0] if theirs else None)
    vocab = None if theirs else vocabulary(tmp_path, [4, 3, 2, 1, 0])
    weight = initialized(table(source, vocab=vocab))
    assert np.array_equal(weight[:5], VALUES)
    assert not weight[5:].any()


def test_rows_of_a_checkpoint_ignore_the_vocabulary_with_a_warning(tmp_path, caplog):
    path = write_checkpoint(tmp_path, 7, {"model.tables.embeddings.user.weight": torch.from_numpy(VALUES)}, {})
    initialized(table(path, vocab=vocabulary(tmp_path, [4, 3, 2, 1, 0])))
    warning, summary = caplog.messages
    for fact in ("table user", str(path), "by index", "vocabulary is ignored"):
        assert fact in warning
    for fact in ("table user", "5 of 8 rows", str(path), "by index"):
        assert fact in summary


def test_a_vocabulary_with_fewer_entities_than_rows_is_a_warning(tmp_path, caplog):
    check_vocabulary(table(tmp_path, vocab=vocabulary(tmp_path, [4, 3, 2])))
    (warning,) = caplog.messages
    for fact in ("table user", "num_embeddings is 8", "3 entities"):
        assert fact in warning


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_of_a_checkpoint_are_matched_by_index(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(pretrained, "_ROWS_PER_BLOCK", 2)
    tensors = {
        "model.tables.embeddings.user.weight": torch.from_numpy(VALUES).to(dtype),
        "model.tables.embeddings.user2.weight": torch.ones(3, 4),
    }
    path = write_checkpoint(tmp_path, 7, tensors, {})
    weight = initialized(table(path))
    assert np.array_equal(weight[:5], tensors["model.tables.embeddings.user.weight"].float().numpy())
    assert not weight[5:].any()
    assert np.array_equal(initialized(table(path, "user2"))[:3], np.ones((3, 4)))


def test_a_run_directory_stands_for_its_newest_checkpoint(tmp_path, caplog):
    for step, values in ((7, VALUES), (20, 2 * VALUES), (3, 3 * VALUES)):
        tensors = {"model.tables.embeddings.user.weight": torch.from_numpy(values)}
        write_checkpoint(tmp_path / "run" / "checkpoints", step, tensors, {})
    assert np.array_equal(initialized(table(tmp_path / "run"))[:5], 2 * VALUES)
    [message] = caplog.messages
    for fact in ("table user", "5 of 8 rows", f"{tmp_path}/run/checkpoints/20", "by index"):
        assert fact in message


def test_errors_that_show_without_reading_rows_are_raised_by_the_call(tmp_path):
    source = export(tmp_path / "export", ["a", "b", "c", "d", "e"])
    checkpoint = write_checkpoint(tmp_path, 7, {"model.tables.embeddings.tweet.weight": torch.ones(9, 4)}, {})
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    uri = ".embedding_snapshot_uri: "
    for config, key, facts in [
        (table(tmp_path / "no"), uri, [f"{tmp_path}/no: no such directory", str(Path.cwd())]),
        (table(tmp_path / "empty"), uri, ["no complete checkpoint", f"{tmp_path}/empty"]),
        (table(tmp_path / "run"), uri, ["no complete checkpoint", f"{tmp_path}/run"]),
        (table(source, "usr"), ".emb_name: ", [f"{source} has no table usr", "tables are: user"]),
        (table(checkpoint), ".emb_name: ", [f"{checkpoint} has no table user", "tables are: tweet"]),
        (
            table(source, embedding_dim=6),
            ": ",
            [f"{source}/user.parquet", "dimension 4", "embedding_dim is 6"],
        ),
        (table(checkpoint, "tweet", embedding_dim=6), ": ", [str(checkpoint), "dimension 4", "embedding_dim is 6"]),
        (table(checkpoint, "tweet"), ": ", [f"index 8 in {checkpoint}", "num_embeddings is 8"]),
    ]:
        with pytest.raises(ConfigError) as caught:
            rows_of(config)
        assert str(caught.value).startswith(f"{KEY_PATH}.pretrained{key}")
        for fact in facts:
            assert fact in str(caught.value)


def test_errors_in_rows_are_raised_during_the_iteration(tmp_path):
    source = export(tmp_path / "export", ["a", "b", "c", "d", "e"])
    with pytest.raises(ConfigError, match=r"^model.*: .*index 3 in .*user.parquet, but num_embeddings is 3"):
        initialized(table(source, rows=3))
    with pytest.raises(ConfigError, match=r"^model.*pretrained: no entity of .*user.parquet is in .*vocabulary"):
        initialized(table(source, vocab=vocabulary(tmp_path, ["A", "B"])))


def test_a_damaged_checkpoint_is_an_error(tmp_path):
    path = write_checkpoint(tmp_path, 7, {"model.tables.embeddings.user.weight": torch.ones(8, 4)}, {})
    next(path.glob("*.bin")).write_bytes(b"x")
    with pytest.raises(UserError, match=f"^model.embeddings.tables.user..pretrained: {path}/.*damaged"):
        rows_of(table(path))


def test_a_bad_vocabulary_is_a_config_error(tmp_path):
    check_vocabulary(table())
    check_vocabulary(table(vocab=vocabulary(tmp_path, ["a", "b"])))
    check_vocabulary(table(rows=2, vocab=vocabulary(tmp_path, ["a", "b"])))
    with pytest.raises(ConfigError) as caught:
        check_vocabulary(table(rows=1, vocab=(path := vocabulary(tmp_path, ["a", "b"]))))
    assert str(caught.value).startswith(f"{KEY_PATH}.vocab: {path} has 2 entities, but num_embeddings is 1. ")
    with pytest.raises(ConfigError, match=rf"\.vocab: {tmp_path}/no.parquet: .*vocabulary"):
        check_vocabulary(table(vocab=str(tmp_path / "no.parquet")))
