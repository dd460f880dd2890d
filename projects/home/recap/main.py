"""Trains the Heavy Ranker, or evaluates the checkpoints of a training run as they appear.

torchrun --standalone --nproc-per-node 2 -m projects.home.recap.main --config projects/home/recap/configs/local.yaml
"""

if __name__ == "__main__":  # before imports that take seconds
    if not __package__:  # started by its path
        import sys
        from pathlib import Path

        sys.path[0] = str(Path(__file__).resolve().parents[3])
    from common.process.stop_signals import exit_on_signals

    exit_on_signals()

from common.process.program import run
from core.command_line import read_command
from projects.home.recap.config import RecapConfig


def main() -> int:
    """Run the program and return its exit status (see core.project)."""
    command = read_command("projects.home.recap.main", "Trains the Heavy Ranker.", RecapConfig)
    # These imports take seconds. A mistake in the command line or the configuration is reported without them.
    from core.project import run_project
    from projects.home.recap.project import PROJECT

    return run_project(PROJECT, command)


if __name__ == "__main__":
    run(main)
