"""Starts `projects.home.recap.tools.join_embeddings`; kept so that older commands work."""

import runpy

if __name__ == "__main__":
    runpy.run_module("projects.home.recap.tools.join_embeddings", run_name="__main__", alter_sys=True)
