"""Starts `projects.home.recap.tools.prepare` under the name that its documentation uses."""

if __name__ == "__main__" and not __package__:  # started by its path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[4])

import runpy

if __name__ == "__main__":
    runpy.run_module("projects.home.recap.tools.prepare", run_name="__main__", alter_sys=True)
