"""Says what to type instead of `projects/twhin/run.py`, the name of TwHIN's program in the original."""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common.errors import UserError
from common.process.program import run


def main() -> int:
    """Raise UserError."""
    raise UserError(
        "the program is projects/twhin/main.py. Type: torchrun --standalone --nproc-per-node 2 -m projects.twhin.main "
        "--config projects/twhin/configs/local.yaml"
    )


if __name__ == "__main__":
    run(main)
