"""Exports a ranker for serving: `python -m projects.home.recap.export --checkpoint SAVE_DIR --out DIR`."""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[4])

from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report


def main() -> int:
    """Run the command line and return the exit status.

    Raises:
      UserError: the checkpoint cannot be exported, a package is missing, an exported model differs from the ranker, or
        `--out` cannot be written.
    """
    setup_logging(rank=0)
    parser = ArgumentParser(
        prog="python -m projects.home.recap.export",
        description="Exports the ranker of a checkpoint for serving: model.pt2 (torch.export), model.onnx, a package "
        "of AOTInductor, and signature.json, which describes them (docs/export.md).",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=user_path,
        metavar="DIR",
        help=".../checkpoints/<step>, or the save_dir of a run, whose newest complete checkpoint is exported",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="export the best checkpoint of the save_dir by early_stopping or checkpoint_keep_best, not the newest one",
    )
    parser.add_argument(
        "--out", required=True, type=user_path, metavar="DIR", help="directory to create; must be empty if it exists"
    )
    parser.add_argument(
        "--skip_aotinductor",
        action="store_true",
        help="do not compile the package of AOTInductor, which takes about a minute and needs a C++ compiler",
    )
    args = parser.parse_args()
    from core.checkpoints.chosen import choose_checkpoint
    from projects.home.recap.export.export import export, report  # imports torch, which takes seconds

    checkpoint = choose_checkpoint(args.checkpoint, best=args.best)
    print_report(report(export(checkpoint, args.out, compiles=not args.skip_aotinductor)))
    return 0


if __name__ == "__main__":
    run(main, after_interrupt="starts over", one_process=True)
