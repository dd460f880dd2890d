"""Trains the Heavy Ranker, or evaluates its checkpoints beside the training.

torchrun --standalone --nproc-per-node 2 -m projects.home.recap.main --config projects/home/recap/configs/local.yaml
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from common.device import (
    World,
    joined_world,
    rank_from_env,
    seed_initial_weights,
    set_deterministic,
    set_precision,
    world_size_from_env,
)
from common.logging import setup_logging
from common.measurement import Measurement
from common.metrics_file import read_metrics
from common.program import ArgumentParser, run
from common.wandb import check_key_file
from core import custom_training_loop, debug_training_loop
from core.checkpoint_evaluation import only_evaluate
from core.config import ConfigError, load_config_from_yaml
from core.evaluation import Partition
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.dataset import RecapDataset, check_batching
from projects.home.recap.metrics import check_strata, metrics_table, partition_metrics
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.model.model_and_loss import ModelAndLoss
from projects.home.recap.optimizer import build_optimizer

logger = logging.getLogger(__name__)

_TRAIN = "train_data"


def main() -> int:
    """Reads the command line and the configuration, checks the data, trains or evaluates, and tells what was made.

    Returns:
      the exit status: 0; 1 where the last checkpoint could not be written; or 128 + the number of the signal that
      stopped the run.
    """
    setup_logging(rank_from_env())
    args = _parse_args()
    config = load_config_from_yaml(RecapConfig, args.config, args.set)
    if args.print_config:
        if rank_from_env() == 0:
            sys.stdout.write(config.pretty_print())
        return 0

    # What can be known to be wrong is told before a process group or a GPU is touched.
    if config.runtime.wandb is not None:
        check_key_file(config.runtime.wandb)
    datasets = _open_datasets(config)
    set_precision(config.runtime.enable_tensorfloat32)
    set_deterministic(config.runtime.deterministic)
    with joined_world(config.runtime.process_group_timeout_in_s) as world:
        if args.mode == "evaluate":
            return _evaluate(config, datasets, world)
        return _train(config, datasets, world, args)


def _parse_args() -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m projects.home.recap.main", description="Trains the Heavy Ranker.")
    parser.add_argument(
        "--mode",
        choices=["train", "evaluate"],
        default="train",
        help="evaluate: evaluate each checkpoint in training.save_dir as it appears, beside the run that trains",
    )
    parser.add_argument("--config", required=True, metavar="YAML", help="the configuration")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, e.g. training.num_train_steps=100; may be given several times (docs/configuration.md)",
    )
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and end")
    parser.add_argument(
        "--overwrite_save_dir", action="store_true", help="start anew, deleting the run in training.save_dir"
    )
    parser.add_argument(
        "--debug_loop",
        action="store_true",
        help="train in the plain loop: no DDP, no checkpoints, every loss",
    )
    args = parser.parse_args()
    for option in ("overwrite_save_dir", "debug_loop"):
        if args.mode == "evaluate" and getattr(args, option):
            parser.error(f"--{option}: not with --mode evaluate, which neither trains nor deletes")
    return args


def _open_datasets(config: RecapConfig) -> dict[str, RecapDataset]:
    """The data sets by their path in the configuration; the training data first."""
    datasets: dict[str, RecapDataset] = {}
    for path, data_config in config.data_sets().items():
        check_batching(data_config, path, world_size_from_env())
        datasets[path] = RecapDataset.open(
            data_config,
            list(config.model.tasks),
            path,
            evaluation=path != _TRAIN,
            small_embeddings=config.model.small_embeddings,
        )
        datasets[path].check_same_features(datasets[_TRAIN], path)
        table = datasets[path].table
        logger.info("%s: %s rows in %d file(s), %s", path, f"{table.num_rows:,}", table.num_files, table.inputs)
    check_strata(config.model.stratifiers or (), datasets[_TRAIN].widths)
    return datasets


def _build_model(
    config: RecapConfig, datasets: Mapping[str, RecapDataset], world: World
) -> tuple[HeavyRanker, ModelAndLoss]:
    tasks = config.model.tasks
    seed_initial_weights(config.runtime.seed)
    ranker = HeavyRanker(config.model, datasets[_TRAIN].widths, datasets[_TRAIN].calibration_rates)
    pos_weights = [task.pos_weight for task in tasks.values()]
    return ranker, ModelAndLoss(ranker, pos_weights, config.model.stratifiers or ()).to(world.device)


def _partitions(config: RecapConfig, datasets: Mapping[str, RecapDataset], world: World) -> dict[str, Partition]:
    return {
        path.removeprefix("validation_data."): Partition(
            dataset.reader(world.rank, world.size), partition_metrics(config, dataset)
        )
        for path, dataset in datasets.items()
        if path != _TRAIN
    }


def _train(config: RecapConfig, datasets: Mapping[str, RecapDataset], world: World, args: argparse.Namespace) -> int:
    ranker, model = _build_model(config, datasets, world)
    rows = config.train_data.global_batch_size // world.size
    if rows == 1 and any(isinstance(module, torch.nn.BatchNorm1d) for module in model.modules()):
        raise ConfigError(
            f"train_data.global_batch_size: {config.train_data.global_batch_size} given, one example for each of "
            f"{world.size} process(es); batch norm needs at least two"
        )
    optimizer, learning_rates = build_optimizer(ranker, config.optimizer)
    train_reader = datasets[_TRAIN].reader(world.rank, world.size)
    partitions = _partitions(config, datasets, world)
    job = (config, model, optimizer, learning_rates, train_reader, partitions, world)
    if args.debug_loop:
        debug_training_loop.train(*job)
        return 0
    outcome = custom_training_loop.train(*job, overwrite_save_dir=args.overwrite_save_dir)
    if world.is_main:
        directory = outcome.directory
        sys.stdout.write(_closing_report(directory.checkpoints, directory.metrics, directory.config))
    return outcome.exit_status


def _evaluate(config: RecapConfig, datasets: Mapping[str, RecapDataset], world: World) -> int:
    _, model = _build_model(config, datasets, world)
    train_reader = datasets[_TRAIN].reader(world.rank, world.size)
    outcome = only_evaluate(config, model, train_reader, _partitions(config, datasets, world), world)
    if world.is_main:
        sys.stdout.write(_closing_report(outcome.directory.checkpoints, outcome.directory.metrics))
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by


def _closing_report(checkpoints: Path, metrics: Path, resolved_config: Path | None = None) -> str:
    """The newest metrics of each partition, and where everything is."""
    measured = sorted(read_metrics(metrics), key=lambda measurement: measurement.step)
    newest: dict[str | None, Measurement] = {m.partition: m for m in measured if m.mode == "evaluate"}
    lines = [""]
    for measurement in newest.values():
        partial = ", stopped by eval_timeout_in_s" if measurement.timing.get("timed_out") else ""
        examples = f"{measurement.metrics['examples']:,} examples{partial}"
        title = f"{measurement.partition} after step {measurement.step}: {examples}"
        lines += [title, metrics_table(measurement), ""]
    lines += [f"checkpoints    {checkpoints}", f"metrics        {metrics}"]
    if resolved_config is not None:
        lines.append(f"configuration  {resolved_config}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
