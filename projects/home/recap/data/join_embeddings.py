"""Runs `projects.home.recap.tools.join_embeddings` under its earlier name, so that existing commands keep working."""

import runpy

if __name__ == "__main__":
    runpy.run_module("projects.home.recap.tools.join_embeddings", run_name="__main__", alter_sys=True)
