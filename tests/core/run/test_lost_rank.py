"""Errors that are reported as a lost rank, and errors that are not. tests/distributed/ covers real lost ranks."""

import dataclasses
from pathlib import Path

import pytest
import torch.distributed as dist

from common.errors import LostRankError, UserError
from core.run.lost_rank import report_lost_rank
from tests.support.toy import ALONE

TWO = dataclasses.replace(ALONE, size=2)


@pytest.mark.parametrize("error", [UserError("wrong data"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_an_error_without_communication_is_raised_unchanged(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, report_lost_rank(TWO, lambda: "step 3", tmp_path):
        raise error
    assert raised.value is error


def test_a_world_of_one_loses_no_rank(tmp_path: Path) -> None:
    with pytest.raises(dist.DistNetworkError), report_lost_rank(ALONE, lambda: "step 3", tmp_path):
        raise dist.DistNetworkError("no network")


def test_an_error_caused_by_failed_communication_is_a_lost_rank(tmp_path: Path) -> None:
    error = ValueError("a save failed")
    error.__cause__ = dist.DistBackendError("[Rank 0] NCCL communicator was aborted. More.\nand a stack in C++")
    facts = "rank 0: .*step 3: NCCL communicator was aborted. .*checkpoint: none"
    with pytest.raises(LostRankError, match=facts) as raised, report_lost_rank(TWO, lambda: "step 3", tmp_path):
        raise error
    assert raised.value.__cause__ is error
    assert "stack in C++" not in str(raised.value)


def test_an_error_of_gloo_is_a_lost_rank_and_the_newest_checkpoint_is_named(tmp_path: Path) -> None:
    for step in (4, 8):
        (tmp_path / str(step)).mkdir()
        (tmp_path / str(step) / "manifest.json").write_text("{}")
    error = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    facts = rf"step 9: Connection closed by peer. .*{tmp_path}/8\."
    with pytest.raises(LostRankError, match=facts), report_lost_rank(TWO, lambda: "step 9", tmp_path):
        raise error


def test_a_program_that_needs_no_checkpoint_to_continue_names_none() -> None:
    facts = r"This rank: predicting: no network\. Run the same command again"
    with pytest.raises(LostRankError, match=facts), report_lost_rank(TWO, lambda: "predicting", None):
        raise dist.DistNetworkError("no network")


def test_nested_reports_are_one_and_the_inner_one_describes_the_situation(tmp_path: Path) -> None:
    with (
        pytest.raises(LostRankError, match=r"rank 0: .*step 3: no network") as raised,
        report_lost_rank(TWO, lambda: "starting", tmp_path),
        report_lost_rank(TWO, lambda: "step 3", tmp_path),
    ):
        raise dist.DistNetworkError("no network")
    assert "starting" not in str(raised.value)
