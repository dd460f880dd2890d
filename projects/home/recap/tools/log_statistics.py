"""Computes the statistics by which z_score_log_config normalizes: `python -m projects.home.recap.tools.log_statistics`.

Reads the training data of a configuration once.
"""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[4])

import shlex
from pathlib import Path

from common.errors import ConfigError, UserError
from common.files.durable import replace_file
from common.process.logging import setup_logging
from common.process.paths import user_path
from common.process.program import ArgumentParser, run
from common.process.standard_streams import print_report
from core.config import load_config_from_yaml
from projects.home.recap.config import RecapConfig


def write_log_statistics(config: RecapConfig) -> Path:
    """Write the file that z_score_log_config names, and return its path.

    Raises:
      ConfigError: the configuration has no z_score_log_config.
      DataError: the training data is invalid.
      UserError: the file exists, or cannot be written.
    """
    from projects.home.recap.tools.log_moments import log_statistics  # imports torch

    z_score = config.model.featurization_config.z_score_log_config
    if z_score is None:
        raise ConfigError("model.featurization_config.z_score_log_config is missing. Its analysis_path is written")
    path = user_path(z_score.analysis_path)
    if path.exists():
        raise UserError(f"{path} exists. Delete it to compute it again, or set another analysis_path")
    content = log_statistics(config).model_dump_json(indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def main() -> int:
    """Run the command line: compute the statistics, print the report, and return the exit status 0."""
    setup_logging(rank=0)
    parser = ArgumentParser(
        prog="python -m projects.home.recap.tools.log_statistics",
        description="Computes the statistics by which z_score_log_config normalizes continuous features "
        "(docs/heavy-ranker.md), and writes them to its analysis_path.",
    )
    parser.add_argument("--config", required=True, type=user_path, metavar="YAML", help="the configuration file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; can be repeated"
    )
    args = parser.parse_args()
    path = write_log_statistics(load_config_from_yaml(RecapConfig, args.config, args.set))
    options = ["--config", str(args.config), *(word for override in args.set for word in ("--set", override))]
    print_report(
        f"statistics  {path}\n\nTrain with\n"
        f"  torchrun --standalone --nproc-per-node 2 -m projects.home.recap.main {shlex.join(options)}\n"
    )
    return 0


if __name__ == "__main__":
    run(main, "starts over", one_process=True)
