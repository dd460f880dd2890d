"""Builds the trackers of a run and of its follower, as the configuration says."""

import functools

from common.tracking.metrics_file import read_metrics
from common.tracking.trackers import Trackers, build_trackers
from common.tracking.wandb import WandbTracker
from core.run.components import Components
from core.run.directory import FollowerDirectory, RunDirectory
from core.run.state import TrainingState


def build_run_trackers(components: Components, directory: RunDirectory, state: TrainingState) -> Trackers:
    """Build the trackers of a trainer that begins with `state`: the metrics file, and W&B if configured.

    Raises:
      UserError: the metrics file is damaged, or the key file of W&B cannot be used.
    """
    config = components.config
    return build_trackers(
        directory.path, config.runtime.wandb, config.model_dump(mode="json"), state.step, run_id=state.tracker_run_id
    )


def build_follower_trackers(components: Components, directory: FollowerDirectory, state: TrainingState) -> Trackers:
    """Build the trackers of a follower: W&B if configured, in the group of the trainer's run.

    Raises:
      UserError: the key file of W&B cannot be used.
    """
    config, trackers = components.config, Trackers()
    if config.runtime.wandb is not None:
        build = functools.partial(
            WandbTracker,
            config.runtime.wandb,
            directory.path,
            config.model_dump(mode="json"),
            job_type="evaluate",
            group=state.tracker_run_id,
            # Completed evaluations that an earlier follower did not send before it was killed.
            backlog=read_metrics(directory.metrics),
            has_failed=lambda: trackers.run_has_failed,
        )
        trackers.add_wandb(build)
    return trackers
