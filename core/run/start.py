"""Finds where a run begins: a resume from its newest checkpoint, a warm start from another run's, or a fresh run."""

import contextlib
import logging
import os

from common.checkpointing.directory import find_checkpoints
from common.checkpointing.manifest import DamagedCheckpointError
from common.checkpointing.reader import CheckpointReader, open_on_all_ranks
from common.checkpointing.retention import CheckpointRetention
from common.distributed.world import World
from common.process.identity import torchrun_identity
from common.process.paths import user_path
from common.process.rerun import OVERWRITE
from common.reader.order import Position
from core.models.averaging import WeightAverage
from core.run.agreement import check_agreement
from core.run.components import TrainingComponents
from core.run.directory import RunDirectory
from core.run.identity import check_same_run, run_environment
from core.run.launch import Launch, Overwrite
from core.run.state import TrainingState
from core.run.tensors import load_average, load_averaged_model, load_model, load_optimizer

logger = logging.getLogger(__name__)


class Start(contextlib.AbstractContextManager["Start"]):
    """The start of a run. Leaving the `with` block closes its checkpoint."""

    is_resumed = False
    summary = ""
    """Describes where training begins, for the log. It is empty for a fresh run."""

    def __exit__(self, *_: object) -> None:
        """Do nothing, because there is no checkpoint to close."""

    def restore(self, components: TrainingComponents) -> TrainingState:
        """Load the initial state into the model and the optimizers on this rank.

        Returns:
          The state that training continues from.

        Raises:
          UserError: the checkpoint is damaged, or does not belong to this run or model.
        """
        raise NotImplementedError

    def restore_on_all_ranks(self, components: TrainingComponents) -> TrainingState:
        """Call restore() on all ranks. Collective.

        A resume falls back to the previous checkpoint if any rank finds that its checkpoint is damaged.

        Returns:
          The state that training continues from.

        Raises:
          UserError: on all ranks, if restore() raises it on any.
        """
        while True:
            try:
                return components.world.consensus.on_all_ranks(lambda: self.restore(components))
            except DamagedCheckpointError as error:
                self.fall_back(error, components.world)

    def fall_back(self, error: DamagedCheckpointError, world: World) -> None:  # noqa: ARG002
        """Change to the previous checkpoint. Collective. Raises `error` if there is no choice."""
        raise error


class FreshRun(Start):
    """Begins with the model's initial weights."""

    def restore(self, components: TrainingComponents) -> TrainingState:
        """Call on_fresh_run, if the project defines it."""
        if components.on_fresh_run is not None:
            components.on_fresh_run()
        return _first_state(components)


class _StartFromCheckpoint(Start):
    def __init__(self, checkpoint: CheckpointReader) -> None:
        self._checkpoint = checkpoint

    def __exit__(self, *_: object) -> None:
        self._checkpoint.close()


class WarmStart(_StartFromCheckpoint):
    """Begins with the weights of another run's checkpoint, at step 0 with fresh optimizers."""

    def restore(self, components: TrainingComponents) -> TrainingState:
        """Load the checkpoint's weights: those that were evaluated."""
        load_averaged_model(components.model, self._checkpoint)
        self.summary = f"warm start: weights from {self._checkpoint.path}"
        return _first_state(components)


class Resume(_StartFromCheckpoint):
    """Continues the run in save_dir after its newest checkpoint."""

    is_resumed = True

    def __init__(self, checkpoint: CheckpointReader, retention: CheckpointRetention) -> None:
        super().__init__(checkpoint)
        self._retention = retention

    def fall_back(self, error: DamagedCheckpointError, world: World) -> None:
        """Change to the newest checkpoint that is not known to be damaged. Raises CheckpointError if there is none."""
        self._checkpoint.close()
        self._retention.reject(self._checkpoint.path, error)
        previous = self._retention.open_newest(world)
        assert previous is not None
        self._checkpoint = previous

    def restore(self, components: TrainingComponents) -> TrainingState:
        """Load the model, the optimizers and the state."""
        checkpoint, config = self._checkpoint, components.config
        state = TrainingState.from_checkpoint(checkpoint)
        save_dir = RunDirectory(config.training.save_dir).path
        check_same_run(save_dir, state.identity, components.identity, hints=config.identity_hints)
        current = run_environment(components.world)
        for name in current:
            if (before := checkpoint.provenance.get(name)) != current[name]:
                logger.info("%s: %s before, %s now; the last bits of results may differ", name, before, current[name])
        load_model(components.model, checkpoint)
        load_optimizer(components.model, components.optimizer, checkpoint)
        if (average := _begin_average(components, state.averaged_updates)) is not None:
            load_average(average, checkpoint)
        self.summary = f"continuing after step {state.step} from {checkpoint.path}"
        return state


def find_overwrite(components: TrainingComponents, directory: RunDirectory) -> Overwrite:
    """Return whether to start over: once per launch, although a supervisor repeats the option. Collective.

    Raises:
      UserError: it is unknown whether this launch has started over before.
    """
    if not components.overwrite_save_dir:
        return Overwrite()
    consensus = components.world.consensus
    launch = Launch.from_environment(os.environ, consensus.gather(torchrun_identity()))
    advice = consensus.broadcast_from_rank_zero(lambda: directory.how_to_start_over_again(launch))
    if advice is None:
        return Overwrite(launch, is_due=True)
    logger.warning(
        "%s has no effect: this launch (%s), or the one that it repeats, has already started over in %s, so its run "
        "continues there. To start over again, %s",
        OVERWRITE,
        launch,
        directory.path,
        advice,
    )
    return Overwrite(launch)


def find_start(
    components: TrainingComponents, directory: RunDirectory, retention: CheckpointRetention, *, overwrites: bool
) -> Start:
    """Return where the run begins, with its checkpoint open so that rotation does not delete it. Collective.

    Args:
      components: components of the run.
      directory: directory of the run.
      retention: finds the newest checkpoint in it.
      overwrites: the run starts over, and deletes all checkpoints in its directory.

    Raises:
      CheckpointError: all checkpoints in save_dir are damaged, or the initial checkpoint cannot be used.
      UserError: ranks have different initial checkpoints at the same path, or the run would delete it.
    """
    world, initial = components.world, components.config.training.initial_checkpoint_dir
    newest = None if overwrites else retention.open_newest(world)
    if newest is not None:
        return Resume(newest, retention)
    if initial is not None:
        path = user_path(initial)
        found = world.consensus.broadcast_from_rank_zero(lambda: find_checkpoints(path)[-1])
        if overwrites:
            directory.check_not_deleted(found, "training.initial_checkpoint_dir")
        checkpoint = open_on_all_ranks(found, world)
        # Unlike save_dir, it may be on a disk of each machine.
        check_agreement(world, lambda: [{f"content of {found}": checkpoint.digest}])
        return WarmStart(checkpoint)
    return FreshRun()


def _first_state(components: TrainingComponents) -> TrainingState:
    _begin_average(components)
    return TrainingState(components.identity, Position.start(components.train_reader.lanes))


def _begin_average(components: TrainingComponents, num_updates: int = 0) -> WeightAverage | None:
    """Begin the moving average of the weights with the current ones, if it is configured."""
    decay = components.config.training.ema_decay
    if decay is None:
        return None
    components.model.average = WeightAverage(components.model.module, decay, num_updates)
    return components.model.average
