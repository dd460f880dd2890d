import pytest

from common.process.environment import local_world_size_from_env, rank_from_env, world_size_from_env


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (rank_from_env(), world_size_from_env(), local_world_size_from_env()) == (0, 1, 1)


def test_torchrun_sets_the_rank_and_both_numbers_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert (rank_from_env(), world_size_from_env(), local_world_size_from_env()) == (3, 8, 4)
