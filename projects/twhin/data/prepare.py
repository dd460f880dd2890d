"""Runs `projects.twhin.tools.prepare` under its earlier name, so that existing commands keep working."""

import runpy

if __name__ == "__main__":
    runpy.run_module("projects.twhin.tools.prepare", run_name="__main__", alter_sys=True)
