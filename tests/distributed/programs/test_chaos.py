"""A run that was killed in a save, a rotation and an evaluation is, bit for bit, the run that was not.

benchmarks/chaos.py does the same at random moments.
"""

import signal
from pathlib import Path

import pytest

from tests.support.comparison import assert_equal_runs, logged
from tests.support.programs import RECAP, TWHIN, finish
from tests.support.runs import small_run, small_twhin_run
from tests.support.trap import TRAP, Trap, trapped

# The optimizers, the window of train metrics (logged at 3, 6, 9), dropout and the second epoch all have a past at each
# checkpoint (4, 8, 12).
OPTIONS = (
    "training.num_epochs=3",
    "training.num_train_steps=24",
    "training.checkpoint_max_to_keep=2",
    "training.eval_log_every_n=1",
)
RECAP_OPTIONS = (
    "training.max_grad_norm=1.0",
    "model.tasks[recap.engagement.is_replied].mlp_config="
    "{layer_sizes: [8, 1], dropout: {rate: 0.3}, batch_norm: {affine: true}}",
    "model.small_embeddings.tables=[{name: topic, num_embeddings: 40, embedding_dim: 2, index: 0}]",
)
TWHIN_OPTIONS = ("model.embeddings.tables[0].sharding=table_wise", "validation_data.validation.global_batch_size=12")


@pytest.mark.parametrize("module", [RECAP, TWHIN])
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_is_bit_equal(
    recap_data: Path, twhin_data: Path, tmp_path: Path, module: str, processes: int
) -> None:
    def arguments(save_dir: Path) -> list[str]:
        if module == RECAP:
            return small_run(recap_data, save_dir, *OPTIONS, *RECAP_OPTIONS)
        return small_twhin_run(twhin_data, save_dir, *OPTIONS, *TWHIN_OPTIONS)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = finish(arguments(whole), processes, module=module)
    assert ended.returncode == 0, ended.stderr
    assert len(logged(whole)) == 8 + 6

    traps = [
        Trap(r"^open \S+/\.writing-8/__", rank=processes - 1),  # before a rank writes its part
        Trap(r"^os.remove \S+delet", count=2),  # between a checkpoint's files
        Trap(r"^log evaluating validation at step 20: 2 batches$"),
    ]
    said = ""
    if processes > 1:
        # torchrun starts the workers again by itself.
        restarts = ("--max-restarts", str(len(traps)))
        ended = finish(trapped(traps, module, arguments(killed)), processes, *restarts, module=TRAP)
        said = ended.stderr
        assert "rank 0: another rank died or does not answer" in said
    else:
        for start in range(len(traps) + 1):
            ended = finish(trapped(traps[start:], module, arguments(killed)), module=TRAP)
            said += ended.stderr
            assert ended.returncode == (-signal.SIGKILL if start < len(traps) else 0), said
    assert ended.returncode == 0, said
    assert said.count("trap: ") == len(traps), said
    assert said.count("continuing after step 4 ") == 1
    assert said.count("continuing after step 12 ") == 1
    assert_equal_runs(whole, killed, 24)
