"""A run that is killed during a save, a rotation and an evaluation ends bit for bit like an uninterrupted run.

benchmarks/chaos.py kills at random moments.
"""

import signal
from pathlib import Path

import pytest

from tests.support.comparison import assert_equal_runs, logged
from tests.support.programs import RECAP, TWHIN, finish
from tests.support.runs import small_run, small_twhin_run
from tests.support.trap import TRAP, Trap, trapped

pytestmark = pytest.mark.faults

# At the checkpoints of steps 4 and 8, a window of train metrics is open (logged every 3 steps). The run has optimizer
# states, dropout and a second epoch.
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
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
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
        Trap(r"^open \S+/\.writing-8/tensors-\d", rank=processes - 1),  # before a rank writes its part
        Trap(r"^os.remove \S+delet", count=2),  # between a checkpoint's files
        Trap(r"^log evaluating validation at step 20: 2 batches$"),
    ]
    output = ""
    if processes > 1:
        # torchrun restarts the workers.
        restarts = ("--max-restarts", str(len(traps)))
        ended = finish(trapped(traps, module, arguments(killed)), processes, *restarts, module=TRAP)
        output = ended.stderr
        assert "rank 0: another rank died" in output
    else:
        for start in range(len(traps) + 1):
            ended = finish(trapped(traps[start:], module, arguments(killed)), module=TRAP)
            output += ended.stderr
            assert ended.returncode == (-signal.SIGKILL if start < len(traps) else 0), output
    assert ended.returncode == 0, output
    assert output.count("trap: ") == len(traps), output
    assert output.count("continuing after step 4 ") == 1
    assert output.count("continuing after step 12 ") == 1
    assert_equal_runs(whole, killed, 24)
