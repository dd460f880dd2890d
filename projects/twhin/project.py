"""Describes TwHIN as a project: opens its data, and builds its job from them."""

import functools
import importlib.metadata
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.distributed.world import World
from common.numerics import seed_initial_weights
from common.process.environment import world_size_from_env
from common.reader.parquet import ParquetTable
from common.reader.reader import BatchReader
from core.metrics.evaluation_set import EvaluationSet
from core.models.sharded import ShardedModel, shard
from core.models.size import check_size
from core.models.table_rows import mean_norms, set_rows
from core.project import Job, Project
from core.run.agreement import check_agreement
from core.run.directory import RunDirectory
from projects.twhin.config import TwhinConfig
from projects.twhin.data.batch import EdgeBatch
from projects.twhin.data.edges import EdgeDataset, check_batching
from projects.twhin.data.evaluation_negatives import EvaluationNegatives
from projects.twhin.data.known_edges import KnownEdges, open_known_edges
from projects.twhin.data.relations import Relations
from projects.twhin.data.vocabulary import vocabulary_digest
from projects.twhin.metrics import metrics_table, partition_metrics
from projects.twhin.model.pretrained import check_vocabulary, pretrained_rows, pretrained_source
from projects.twhin.model.ranking import Candidates
from projects.twhin.model.relations import build_relations
from projects.twhin.model.scorer import EdgeScorer
from projects.twhin.model.twhin import Twhin
from projects.twhin.optimizer import build_optimizers

logger = logging.getLogger(__name__)

_TRAIN = "train_data"
_TABLES = "model.embeddings.tables"


@dataclass(frozen=True)
class _Data:
    """The opened data of a run.

    Attributes:
      relations: relations of the model.
      datasets: data sets by key path, training data first.
      known_edges: tables of metrics.known_edges.
      vocabularies: digests of the vocabulary files, by table.
    """

    relations: Relations
    datasets: dict[str, EdgeDataset]
    known_edges: list[ParquetTable]
    vocabularies: dict[str, str]


def _check_training(config: TwhinConfig) -> None:
    check_batching(config.train_data, _TRAIN, world_size_from_env())


def _readers(_config: TwhinConfig, data: _Data, trains: bool) -> dict[str, BatchReader[EdgeBatch]]:
    world_size = world_size_from_env()
    return {name: dataset.reader(0, world_size) for name, dataset in data.datasets.items() if trains or name != _TRAIN}


def _train_reader(config: TwhinConfig, dataset: EdgeDataset, rank: int, world_size: int) -> BatchReader[EdgeBatch]:
    check_batching(config.train_data, _TRAIN, world_size)
    return dataset.reader(rank, world_size)


def _open_data(config: TwhinConfig) -> _Data:
    relations = build_relations(config.model)
    datasets: dict[str, EdgeDataset] = {}
    for key_path, data_config in config.data_sets().items():
        if key_path != _TRAIN:
            check_batching(data_config, key_path, world_size_from_env())
        datasets[key_path] = EdgeDataset.open(data_config, relations, key_path)
        table = datasets[key_path].table
        logger.info("%s: %s edges in %d file(s), %s", key_path, f"{table.num_rows:,}", table.num_files, table.inputs)
    vocabularies = {}
    for table_config in config.model.embeddings.tables:
        check_vocabulary(table_config)
        if table_config.vocab is not None:
            vocabularies[table_config.name] = vocabulary_digest(Path(table_config.vocab))
    check_size(lambda: EdgeScorer(config.model, relations), "model")
    return _Data(relations, datasets, open_known_edges(config.metrics.known_edges, relations), vocabularies)


def _identify(data: _Data) -> dict[str, Any]:
    """Return what identifies the data and the libraries that shard the tables."""
    tables = {key_path: dataset.table for key_path, dataset in data.datasets.items()}
    tables |= {f"metrics.known_edges[{index}]": table for index, table in enumerate(data.known_edges)}
    return {key_path: {"rows": table.fingerprint, "files": dict(table.files)} for key_path, table in tables.items()} | {
        "vocabularies": data.vocabularies,
        "model.relations": list(data.relations.names),
        "versions": {"torchrec": importlib.metadata.version("torchrec")},
    }


def _build(config: TwhinConfig, data: _Data, world: World) -> Job:
    model_config, seed = config.model, config.runtime.seed
    seed_initial_weights(seed)
    twhin = Twhin(
        model_config,
        data.relations,
        global_negatives=config.train_data.global_negatives,
        in_batch_negatives=config.train_data.in_batch_negatives,
        candidates=Candidates(config.metrics, model_config, seed),
    )
    tables = model_config.embeddings.tables
    model = shard(twhin, tables, _TABLES, world, seed=seed, deterministic=config.runtime.deterministic)
    logged = model_config.embeddings.tables_to_log
    return Job(
        model,
        functools.partial(_train_reader, config, data.datasets[_TRAIN]),
        _evaluation_sets(config, data, world),
        functools.partial(build_optimizers, model, model_config, twhin.scorer),
        on_fresh_run=functools.partial(_start_from_pretrained, model, config, world),
        extra_metrics=functools.partial(_mean_norms, model, logged) if logged else None,
    )


def _start_from_pretrained(model: ShardedModel, config: TwhinConfig, world: World) -> None:
    tables = [table for table in config.model.embeddings.tables if table.pretrained is not None]
    if not tables:
        return
    directory = RunDirectory(config.training.save_dir)

    def find_sources() -> list[Path]:
        sources = [pretrained_source(table) for table in tables]
        for table, source in zip(tables, sources, strict=True):
            directory.check_not_deleted(source, f"pretrained rows of the table {table.name}")
        return sources

    # Rank 0 chooses for all ranks: a run that is still training may save another checkpoint in between.
    sources = world.consensus.broadcast_from_rank_zero(find_sources)
    weights = model.tables()
    checksums: dict[str, int] = {}

    def set_pretrained_rows() -> None:
        for table, source in zip(tables, sources, strict=True):
            checksum = 0
            for rows, values in pretrained_rows(table, source):
                set_rows(weights[table.name], rows, values)
                checksum = zlib.crc32(np.ascontiguousarray(values).data, zlib.crc32(rows.data, checksum))
            checksums[f"rows of {source} for the table {table.name}"] = checksum

    world.consensus.on_all_ranks(set_pretrained_rows)
    # Each rank has set its own part of a table from the files that it sees.
    check_agreement(world, lambda: [checksums])


def _mean_norms(model: ShardedModel, tables: list[str]) -> dict[str, float]:
    weights = model.tables()
    norms = mean_norms({table: weights[table] for table in tables})
    return {f"mean_norm/{table}": norm for table, norm in norms.items()}


def _evaluation_sets(config: TwhinConfig, data: _Data, world: World) -> dict[str, EvaluationSet]:
    train_dataset, *evaluation_datasets = data.datasets.values()
    known = None
    if config.metrics.filtered and evaluation_datasets:
        other_tables = [train_dataset.table, *data.known_edges]
        known = KnownEdges(data.relations, [dataset.table for dataset in evaluation_datasets], other_tables)
    evaluation_sets = {}
    for (partition, data_config), dataset in zip(config.evaluation_data.items(), evaluation_datasets, strict=True):
        negatives = EvaluationNegatives(data_config, data.relations, config.runtime.seed)
        reader = dataset.reader(world.rank, world.size, known=known, negatives=negatives)
        evaluation_sets[partition] = EvaluationSet(reader, partition_metrics(config))
    return evaluation_sets


PROJECT = Project(
    _open_data,
    _build,
    metrics_table,
    check_batching=_check_training,
    identify_data=_identify,
    readers=_readers,
    group_of_one=True,
)
