"""Lists, verifies and inspects checkpoints.

python -m common.checkpointing list|verify|inspect DIR
"""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common.checkpointing.directory import find_checkpoints
from common.process.paths import user_path
from common.process.program import ArgumentParser, run


def main() -> int:
    """Run a command and return the exit status: 0, or 1 if a checkpoint is damaged."""
    parser = ArgumentParser(prog="python -m common.checkpointing", description="List, verify and inspect checkpoints.")
    commands = parser.add_subparsers(required=True, dest="command", metavar="list|verify|inspect")
    descriptions = {
        "list": "print the steps, times and sizes of the complete checkpoints",
        "verify": "read every file and compare it with the manifest; exit with status 1 if a checkpoint is damaged",
        "inspect": "print the state and the names, dtypes and shapes of the tensors of the newest checkpoint",
    }
    for name, description in descriptions.items():
        command = commands.add_parser(name, help=description, description=f"{description.capitalize()}.")
        command.add_argument(
            "directory",
            type=user_path,
            metavar="DIR",
            help="save_dir of a run, its checkpoints directory, or one checkpoint",
        )
    args = parser.parse_args()
    checkpoints = find_checkpoints(args.directory)
    from common.checkpointing.commands import inspect, list_checkpoints, verify  # imports torch, which takes seconds

    return {"list": list_checkpoints, "verify": verify, "inspect": inspect}[args.command](checkpoints)


if __name__ == "__main__":
    run(main, "starts over", one_process=True)
