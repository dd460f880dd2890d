"""Describes the Heavy Ranker as a project: opens its data, and builds its job from them."""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch

from common.distributed.world import World
from common.errors import ConfigError
from common.features.encoder import FeatureEncoder
from common.features.statistics import complete_features, is_complete
from common.numerics import seed_initial_weights
from common.optimizers.learning_rate import ParameterGroupScheduler
from common.process.environment import world_size_from_env
from common.reader.reader import BatchReader
from core.metrics.evaluation_set import EvaluationSet
from core.models.size import check_size
from core.project import Job, Project
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.batch import RecapBatch
from projects.home.recap.data.dataset import RecapDataset, check_batching
from projects.home.recap.data.inputs import find_files
from projects.home.recap.metrics import check_kept_predictions, check_strata, evaluation_set_metrics, metrics_table
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.model.model_and_loss import ModelAndLoss
from projects.home.recap.model.position_debias import check_position_index
from projects.home.recap.model.score import configured_score_weights
from projects.home.recap.model.small_embeddings import check_table_indices, smallest_table_sizes
from projects.home.recap.optimizer.build import build_optimizer

logger = logging.getLogger(__name__)

_TRAIN = "train_data"


def _complete(config: RecapConfig) -> RecapConfig:
    """Return the configuration with what its features leave to the training data."""
    if config.features is None or is_complete(config.features):
        return config
    features = complete_features(config.features, find_files(config.train_data, _TRAIN))
    return config.model_copy(update={"features": features})


def _check_training(config: RecapConfig) -> None:
    check_batching(config.train_data, _TRAIN, world_size_from_env())


def _readers(
    _config: RecapConfig, datasets: Mapping[str, RecapDataset], trains: bool
) -> dict[str, BatchReader[RecapBatch]]:
    world_size = world_size_from_env()
    return {name: dataset.reader(0, world_size) for name, dataset in datasets.items() if trains or name != _TRAIN}


def _train_reader(config: RecapConfig, dataset: RecapDataset, rank: int, world_size: int) -> BatchReader[RecapBatch]:
    check_batching(config.train_data, _TRAIN, world_size)
    return dataset.reader(rank, world_size)


def _open_datasets(config: RecapConfig) -> dict[str, RecapDataset]:
    """Open the data sets, keyed by their key paths in the configuration, training data first."""
    small_embeddings = config.model.small_embeddings
    num_ids = {} if small_embeddings is None else smallest_table_sizes(small_embeddings)
    encoder = None if config.features is None else FeatureEncoder.open(config.features)
    datasets: dict[str, RecapDataset] = {}
    for key_path, data_config in config.data_sets().items():
        if key_path != _TRAIN:
            check_batching(data_config, key_path, world_size_from_env())
        dataset = RecapDataset.open(
            data_config,
            list(config.model.tasks),
            key_path,
            evaluation=key_path != _TRAIN,
            num_ids=num_ids,
            group_by=config.metrics.group_by if key_path != _TRAIN else None,
            encoder=encoder,
        )
        datasets[key_path] = dataset
        if small_embeddings is not None:
            check_table_indices(small_embeddings, dataset.widths, key_path)
        dataset.check_same_features(datasets[_TRAIN], key_path)
        table = dataset.table
        logger.info("%s: %s rows in %d file(s), %s", key_path, f"{table.num_rows:,}", table.num_files, table.inputs)
        if key_path != _TRAIN:
            check_kept_predictions(config, dataset, key_path)
    if config.model.position_debias_config is not None:
        check_position_index(config.model.position_debias_config, datasets[_TRAIN].widths, _TRAIN)
    check_strata(config.model.stratifiers or (), datasets[_TRAIN].widths)
    train = datasets[_TRAIN]
    check_size(lambda: _ranker(config, train), "model")
    return datasets


def _identify(datasets: Mapping[str, RecapDataset]) -> dict[str, Any]:
    """Return what identifies the data sets: their files and the features that are read from them."""
    return {key_path: dataset.identity() for key_path, dataset in datasets.items()}


def _ranker(config: RecapConfig, train: RecapDataset) -> HeavyRanker:
    return HeavyRanker(config.model, train.widths, train.calibration_rates, train.layout)


def _build(config: RecapConfig, datasets: Mapping[str, RecapDataset], world: World) -> Job:
    """Build the job from the configuration and its data sets. Every rank builds the same job."""
    seed_initial_weights(config.runtime.seed)
    ranker = _ranker(config, datasets[_TRAIN])
    if config.model.score_weights_path is not None:
        weights = configured_score_weights(config.model) or {}
        listed = ", ".join(f"{task}: {weights.get(task, 0):g}" for task in config.model.tasks)
        logger.info("weights of the score from %s: %s", config.model.score_weights_path, listed)
    model = ModelAndLoss(ranker, list(config.model.tasks.values()), config.model.stratifiers or ()).to(world.device)

    def make_optimizer() -> tuple[torch.optim.Optimizer, ParameterGroupScheduler]:
        rows = config.train_data.global_batch_size // world.size
        if rows == 1 and any(isinstance(module, torch.nn.BatchNorm1d) for module in model.modules()):
            raise ConfigError(
                f"train_data.global_batch_size is {config.train_data.global_batch_size}, which gives each of the "
                f"{world.size} process(es) one example, but batch norm needs at least two"
            )
        return build_optimizer(ranker, config.optimizer)

    return Job(
        model,
        functools.partial(_train_reader, config, datasets[_TRAIN]),
        _evaluation_sets(config, datasets, world),
        make_optimizer,
    )


def _evaluation_sets(
    config: RecapConfig, datasets: Mapping[str, RecapDataset], world: World
) -> dict[str, EvaluationSet]:
    """Return the evaluation sets, keyed by partition name."""
    return {
        key_path.removeprefix("validation_data."): EvaluationSet(
            dataset.reader(world.rank, world.size), evaluation_set_metrics(config, dataset)
        )
        for key_path, dataset in datasets.items()
        if key_path != _TRAIN
    }


PROJECT = Project(
    _open_datasets,
    _build,
    metrics_table,
    check_batching=_check_training,
    identify_data=_identify,
    readers=_readers,
    complete_config=_complete,
)
