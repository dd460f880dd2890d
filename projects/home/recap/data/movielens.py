"""Runs `projects.home.recap.tools.movielens` under its earlier name, so that existing commands keep working."""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[4])

import runpy

if __name__ == "__main__":
    runpy.run_module("projects.home.recap.tools.movielens", run_name="__main__", alter_sys=True)
