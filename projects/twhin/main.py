"""Trains TwHIN, or evaluates the checkpoints of a training run as they appear.

torchrun --standalone --nproc-per-node 2 -m projects.twhin.main --config projects/twhin/configs/local.yaml
"""

if __name__ == "__main__":  # before imports that take seconds
    if not __package__:  # started by its path
        import sys
        from pathlib import Path

        sys.path[0] = str(Path(__file__).resolve().parents[2])
    from common.process.stop_signals import exit_on_signals

    exit_on_signals()

from common.process.program import run
from core.command_line import read_command
from projects.twhin.config import TwhinConfig


def main() -> int:
    """Run the program and return its exit status (see core.project)."""
    description = "Trains TwHIN, a model that learns embeddings of a graph's entities."
    command = read_command("projects.twhin.main", description, TwhinConfig)
    # These imports take seconds. A mistake in the command line or the configuration is reported without them.
    from core.project import run_project
    from projects.twhin.project import PROJECT

    return run_project(PROJECT, command)


if __name__ == "__main__":
    run(main)
