"""Runs `projects.twhin.tools.generate` under its earlier name, so that existing commands keep working."""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[3])

import runpy

if __name__ == "__main__":
    runpy.run_module("projects.twhin.tools.generate", run_name="__main__", alter_sys=True)
