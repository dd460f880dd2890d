"""Reads the command line of a project's program, and the configuration that it names.

Imports nothing that takes long, such as torch, so that --help and errors in the configuration appear at once.
core.project runs the command.
"""

import argparse
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from common.process.environment import check_ranks_can_meet, rank_from_env
from common.process.logging import setup_logging
from common.process.memory import check_address_space
from common.process.paths import user_path
from common.process.program import ArgumentParser
from common.process.standard_streams import print_report
from common.wandb import check_wandb
from core.config import load_config_from_yaml
from core.config.training import JobConfig

C = TypeVar("C", bound=JobConfig)


@dataclass(frozen=True)
class Command(Generic[C]):
    """Holds what a user asks a project's program to do.

    Attributes:
      config: the configuration, with overrides.
      mode: train, or evaluate the checkpoints of a training run as they appear.
      overwrite_save_dir: whether to start over, deleting the run in training.save_dir.
      debug_loop: whether to train in the plain loop.
    """

    config: C
    mode: Literal["train", "evaluate"] = "train"
    overwrite_save_dir: bool = False
    debug_loop: bool = False


def read_command(module: str, description: str, config_class: type[C]) -> Command[C]:
    """Set up logging, read the command line, and load the configuration.

    Args:
      module: name of the module to start, for the usage message.
      description: description of the program, for --help.
      config_class: class of the configuration.

    Raises:
      UserError: the command line, the environment, the configuration or the key file of W&B is invalid.
      SystemExit: the command was only to print the help text or the resolved configuration.
    """
    setup_logging(rank_from_env())
    args = _parse_args(module, description)
    config = load_config_from_yaml(config_class, args.config, args.set)
    if args.print_config:
        if rank_from_env() == 0:
            print_report(config.pretty_print())
        raise SystemExit(0)
    check_ranks_can_meet()
    if config.runtime.wandb is not None:
        check_wandb(config.runtime.wandb)
    check_address_space()
    return Command(config, args.mode, args.overwrite_save_dir, args.debug_loop)


def _parse_args(module: str, description: str) -> argparse.Namespace:
    parser = ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument(
        "--mode",
        choices=["train", "evaluate"],
        default="train",
        help="evaluate: follow the run in training.save_dir and evaluate each checkpoint as it appears",
    )
    parser.add_argument(
        "--config",
        "--config_path",
        required=True,
        type=user_path,
        metavar="YAML",
        help="the configuration file (both names work)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, e.g. training.num_train_steps=100; can be repeated (docs/configuration.md)",
    )
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument(
        "--overwrite_save_dir",
        action="store_true",
        help="start over, deleting the run in training.save_dir; a restart of the same launch continues",
    )
    parser.add_argument(
        "--debug_loop",
        action="store_true",
        help="train in a plain loop that logs every loss, without DDP or checkpoints",
    )
    args = parser.parse_args()
    if args.debug_loop and args.overwrite_save_dir:
        parser.error("--overwrite_save_dir does not work with --debug_loop, which writes nothing")
    for option in ("overwrite_save_dir", "debug_loop"):
        if args.mode == "evaluate" and getattr(args, option):
            parser.error(f"--{option} cannot be used with --mode evaluate, which neither trains nor deletes anything")
    return args
