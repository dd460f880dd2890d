"""Predicts with a trained ranker: `python -m projects.home.recap.predict --checkpoint SAVE_DIR --inputs DIR --out DIR`.

torchrun --standalone --nproc-per-node 2 -m projects.home.recap.predict ... divides the work among processes.
"""

if __name__ == "__main__":  # before imports that take seconds
    if not __package__:  # started by its path
        import sys
        from pathlib import Path

        sys.path[0] = str(Path(__file__).resolve().parents[4])
    from common.process.rerun import SAME_COMMAND
    from common.process.stop_signals import exit_on_signals

    exit_on_signals(SAME_COMMAND)

from common.process.arguments import at_least_1, utf8_text
from common.process.environment import check_ranks_can_meet, rank_from_env
from common.process.logging import setup_logging
from common.process.memory import check_address_space
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from projects.home.recap.predict.options import Options


def main() -> int:
    """Run the command line and return the exit status.

    Raises:
      UserError: an option is invalid, the checkpoint or the input cannot be used, or the directory cannot be written.
    """
    setup_logging(rank_from_env())
    options = _parse_args()
    check_ranks_can_meet()
    check_address_space()
    from projects.home.recap.predict.runner import predict  # imports torch, which takes seconds

    predict(options)
    return 0


def _parse_args() -> Options:
    parser = ArgumentParser(
        prog="python -m projects.home.recap.predict",
        description="Predicts rows of Parquet files with a trained ranker. Run the same command again to continue.",
    )
    parser.add_argument(
        "--checkpoint", required=True, type=user_path, metavar="PATH", help="save_dir of a run, or a checkpoint"
    )
    parser.add_argument("--best", action="store_true", help="use the best checkpoint of the run, not the newest one")
    parser.add_argument(
        "--inputs",
        required=True,
        nargs="+",
        type=utf8_text,
        metavar="FILES",
        help="Parquet files to predict: glob patterns, files or directories",
    )
    parser.add_argument("--out", required=True, type=user_path, metavar="DIR", help="directory of the results")
    parser.add_argument(
        "--columns",
        type=_names,
        default=(),
        metavar="NAME,NAME",
        help="columns of the input to carry through, such as user_id,item_id",
    )
    parser.add_argument(
        "--batch_size", type=at_least_1, default=Options.batch_size, help="rows per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--rows_per_file",
        type=at_least_1,
        default=Options.rows_per_file,
        help="maximum number of rows of a file of the results; a larger row group has a file of its own (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--float32", action="store_true", help="compute in float32, even if the run uses autocast or TensorFloat-32"
    )
    parser.add_argument(
        "--top_k", type=at_least_1, metavar="K", help="also write the K rows with the highest scores, of all files"
    )
    parser.add_argument(
        "--group_by",
        type=utf8_text,
        metavar="COLUMN",
        help="select the --top_k rows of each group of rows with equal values in this column, such as user_id",
    )
    parser.add_argument(
        "--rank_by",
        type=utf8_text,
        metavar="TASK",
        help="rank by the calibrated probability of this task (default: by the score, or by the only task)",
    )
    parser.add_argument(
        "--no_metrics", dest="metrics", action="store_false", help="do not read labels, even if the input has them"
    )
    args = parser.parse_args()
    if args.top_k is None:
        for option in ("group_by", "rank_by"):
            if getattr(args, option) is not None:
                parser.error(f"--{option} needs --top_k, the number of rows to select")
    return Options(**{**vars(args), "inputs": tuple(args.inputs)})


def _names(text: str) -> tuple[str, ...]:
    return tuple(utf8_text(name.strip()) for name in text.split(",") if name.strip())


if __name__ == "__main__":
    run(main, after_interrupt="continues")
