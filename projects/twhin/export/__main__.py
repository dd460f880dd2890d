"""Exports embeddings for other programs: `python -m projects.twhin.export --checkpoint DIR --out DIR`."""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[3])

import sys

from common.checkpointing.directory import find_checkpoints
from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report


def main() -> int:
    """Run the command line and return the exit status.

    Raises:
      UserError: the checkpoint cannot be exported, or `--out` cannot be written.
    """
    setup_logging(rank=0)
    parser = ArgumentParser(
        prog="python -m projects.twhin.export",
        description="Exports the embeddings of a run to Parquet and safetensors files.",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=user_path,
        metavar="DIR",
        help=".../checkpoints/<step>, or the save_dir of a run, whose newest complete checkpoint is exported",
    )
    parser.add_argument(
        "--out", required=True, type=user_path, metavar="DIR", help="directory to create; must be empty if it exists"
    )
    args = parser.parse_args()
    checkpoint = find_checkpoints(args.checkpoint)[-1]
    from projects.twhin.export.tables import export, report  # imports torch, which takes seconds

    exported = export(checkpoint, args.out)
    print_report(report(checkpoint, args.out, exported))
    return 0


if __name__ == "__main__":
    run(main, after_interrupt="starts over", one_process=True)
