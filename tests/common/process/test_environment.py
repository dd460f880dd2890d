import pytest

from common.errors import UserError
from common.process.environment import local_world_size_from_env, rank_from_env, world_size_from_env


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (rank_from_env(), world_size_from_env(), local_world_size_from_env()) == (0, 1, 1)


def test_torchrun_sets_the_rank_and_both_numbers_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert (rank_from_env(), world_size_from_env(), local_world_size_from_env()) == (3, 8, 4)


@pytest.mark.parametrize(
    ("variables", "facts"),
    [
        ({"RANK": "1"}, ("RANK=1", "no WORLD_SIZE")),
        ({"RANK": "5", "WORLD_SIZE": "2"}, ("RANK=5", "WORLD_SIZE=2")),
        ({"RANK": "x", "WORLD_SIZE": "2"}, ("RANK='x'", "not a number")),
        ({"RANK": "0", "WORLD_SIZE": ""}, ("WORLD_SIZE=''", "not a number")),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, ("RANK='-1'", "not a number")),
    ],
)
def test_a_malformed_environment_is_an_error(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], facts: tuple[str, ...]
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as raised:
        rank_from_env()
    for fact in (*facts, "torchrun"):
        assert fact in str(raised.value)
