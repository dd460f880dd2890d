from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.run.identity import ADVICE_TO_FOLLOWER, capped_list, check_same_run, run_environment, run_identity
from tests.support.toy import ALONE, rows_reader

IDENTITY = {
    "runtime": {"seed": 0},
    "model": {"tasks": {"recap.fav": {"pos_weight": 1.0}}, "sizes": [4, 8], "norm": None},
    "files of train_data": "abc",
}


def message(saved: Any, current: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as raised:
        check_same_run(Path("some/run"), saved, current, *arguments)
    return str(raised.value)


def differences(saved: Any, current: Any, *arguments: Any) -> list[str]:
    return message(saved, current, *arguments).splitlines()[1:-1]


def test_an_unchanged_run_may_continue() -> None:
    check_same_run(Path("run"), IDENTITY, {**IDENTITY})


def test_every_difference_is_listed_with_its_key_path() -> None:
    current = {
        "runtime": {"seed": 1},
        "model": {
            "tasks": {"recap.fav": {"pos_weight": 2.0}, "recap.reply": {"pos_weight": 1.0}},
            "sizes": [4, 16],
            "norm": {"eps": 0.1},
            "depth": 3,
        },
    }
    assert differences(IDENTITY, current) == [
        "  runtime.seed: 0 in the run, 1 now",
        "  model.tasks[recap.fav].pos_weight: 1.0 in the run, 2.0 now",
        "  model.tasks[recap.reply]: missing in the run",
        "  model.sizes: [4, 8] in the run, [4, 16] now",
        "  model.norm: missing in the run",
        "  model.depth: null in the run, 3 now",
        '  files of train_data: "abc" in the run, null now',
    ]


def test_the_message_names_the_run_and_what_to_do() -> None:
    first, *_, last = message(IDENTITY, {}).splitlines()
    assert "training.save_dir some/run" in first
    assert "a different save_dir" in last
    assert "--overwrite_save_dir" in last
    assert message(IDENTITY, {}, ADVICE_TO_FOLLOWER).endswith(f"\n{ADVICE_TO_FOLLOWER}")
    assert "--overwrite_save_dir" not in ADVICE_TO_FOLLOWER


def test_in_a_list_of_mappings_only_the_different_keys_are_listed() -> None:
    def model(*rows: int, **changes: Any) -> dict[str, Any]:
        tables = [{"name": "ab"[i], "num_embeddings": n, "optimizer": {"lr": 0.1}} for i, n in enumerate(rows)]
        return {"model": {"embeddings": {"tables": [*tables[:-1], tables[-1] | changes]}}}

    for saved, current, expected in [
        (model(3, 4), model(3, 5, optimizer={"lr": 0.2}), ["[1].num_embeddings: 4 in", "[1].optimizer.lr: 0.1 in"]),
        (model(3, 4), model(3), ["[1]: only in the run"]),
        (model(3), model(3, 4), ["[1]: missing in the run"]),
    ]:
        found = differences(saved, current)
        assert len(found) == len(expected)
        for line, beginning in zip(found, expected, strict=True):
            assert line.startswith(f"  model.embeddings.tables{beginning}")
    check_same_run(Path("run"), model(3, 4), model(3, 4))


def test_a_removed_mapping_is_one_difference() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {}) == ["  a: only in the run"]


def test_many_differences_are_cut_short() -> None:
    found = differences({str(key): 0 for key in range(25)}, {})
    assert len(found) == 21
    assert found[-1] == "  and 5 more"


def test_a_hint_follows_the_difference_at_its_key_path() -> None:
    saved, current = {"data": {"batch": 1}, "data_b": 1}, {"data": {"batch": 2}, "data_b": 2}
    assert differences(saved, current, "Do this.", {"data.batch": "give batch", "data": "not this"}) == [
        "  data.batch: 1 in the run, 2 now; give batch",
        "  data_b: 1 in the run, 2 now",
    ]


def test_an_option_that_is_newer_than_the_run_is_a_difference_only_if_it_is_on() -> None:
    off = {"names": [], "weigh": False, "extra": None, "tables": {}}
    check_same_run(Path("run"), {"model": {"depth": 3}}, {"model": {"depth": 3, **off}})
    found = differences({"model": {"depth": 3}}, {"model": {"depth": 3, **off, "weigh": True}})
    assert found == ["  model.weigh: null in the run, true now"]


def test_zero_and_false_differ_from_null() -> None:
    assert differences({"a": {}, "b": 0, "c": False}, {"a": {}, "b": None, "c": None}) == [
        "  b: 0 in the run, null now",
        "  c: false in the run, null now",
    ]


@pytest.mark.parametrize(("count", "expected"), [(0, []), (2, ["0", "1"]), (3, ["0", "1", "2"])])
def test_a_short_list_is_complete(count: int, expected: list[str]) -> None:
    assert capped_list([str(i) for i in range(count)], limit=3).split() == expected


def test_a_long_list_ends_with_the_number_of_further_lines() -> None:
    assert capped_list(["a", "b", "c", "d", "e"], limit=3) == "a\n  b\n  c\n  and 2 more"


def test_the_identity_has_the_seed_and_the_data_and_not_the_number_of_steps(tmp_path: Path) -> None:
    def identity(seed: int = 0, num_train_steps: int = 10) -> dict[str, Any]:
        training = TrainingConfig(num_train_steps=num_train_steps)
        return run_identity(JobConfig(runtime=RuntimeConfig(seed=seed), training=training), reader)

    reader = rows_reader(tmp_path)
    assert identity() == identity(num_train_steps=20)
    assert identity() != identity(seed=1)
    assert identity()["training files"] == reader.fingerprint


def test_the_environment_has_the_number_of_ranks_and_the_versions() -> None:
    assert run_environment(ALONE) == {
        "world_size": 1,
        "device": "cpu",
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
