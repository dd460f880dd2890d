"""Loads the shipped configurations and reads them in the program. test_config_errors.py covers their errors."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch.distributed as dist

from common.errors import ConfigError, UserError
from core import command_line
from core.config import load_config_from_yaml
from core.run.identity import check_same_run
from projects.home.recap import main
from projects.home.recap.config import RecapConfig
from tests.support.config_fields import config_classes
from tests.support.root import ROOT

CONFIGS = ROOT / "projects/home/recap/configs"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))

shipped = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)


@shipped
def test_shipped_configurations_load_and_print_themselves(path, tmp_path):
    config = load_config_from_yaml(RecapConfig, path)
    printed = tmp_path / "printed.yaml"
    printed.write_text(config.pretty_print())
    assert load_config_from_yaml(RecapConfig, printed) == config
    assert load_config_from_yaml(RecapConfig, printed).pretty_print() == config.pretty_print()


def test_score_weights_may_change_between_a_run_and_its_resume():
    none = "model.score_weights=null"
    one, other, third, fourth = (
        load_config_from_yaml(RecapConfig, CONFIGS / "local.yaml", overrides).identity()
        for overrides in ([], [none], [none, "model.score_weights_path=a"], ["model.multi_task_type=share_partial"])
    )
    assert one == other == third != fourth


def test_a_run_from_before_loss_weights_can_be_resumed_without_them(tmp_path):
    one, other = (
        load_config_from_yaml(RecapConfig, CONFIGS / "local.yaml", overrides).identity()
        for overrides in ([], ["model.tasks[recap.engagement.is_replied].loss_weight=2.0"])
    )
    older = load_config_from_yaml(RecapConfig, CONFIGS / "local.yaml").identity()
    for part in (*older["model"]["tasks"].values(), older["model"]["backbone"]):
        part.pop("loss_weight", None)
        del part["label_smoothing"]
    check_same_run(tmp_path, older, one)
    with pytest.raises(UserError, match=r"model\.tasks\[recap\.engagement\.is_replied\]\.loss_weight"):
        check_same_run(tmp_path, older, other)


def test_the_identity_of_a_run_depends_on_the_content_of_its_masks(tmp_path):
    mask = tmp_path / "mask.npy"
    override = f"train_data.preprocess.truncate_and_slice={{binary_feature_mask_path: {mask}}}"
    config = load_config_from_yaml(RecapConfig, CONFIGS / "local.yaml", [override])
    identities = []
    for values in ([1, 0, 1], [1, 1, 0], [1, 0, 1]):
        np.save(mask, np.array(values, bool))
        identities.append(config.identity())
    assert identities[0] == identities[2] != identities[1]
    with pytest.raises(UserError, match=rf"binary_feature_mask_path.*\"{mask} \(\w+\)\".*\"{mask} \(\w+\)\""):
        check_same_run(tmp_path, identities[0], identities[1])


def test_every_field_of_every_class_has_a_description():
    classes = config_classes(RecapConfig, set())
    assert len(classes) > 20
    fields = {f"{kind.__name__}.{name}": field for kind in classes for name, field in kind.model_fields.items()}
    assert [name for name, field in fields.items() if not field.description] == []
    assert [kind.__name__ for kind in classes if not kind.__doc__] == []


def test_the_configuration_is_read_before_the_process_group_is_joined(monkeypatch, capsys):
    """Joining the process group would fail, because there is no address of a peer."""
    monkeypatch.setattr(command_line, "setup_logging", lambda _: None)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(sys, "argv", ["main", "--config", str(CONFIGS / "local.yaml"), "--print_config"])
        with pytest.raises(SystemExit) as printed:
            main.main()
        assert printed.value.code == 0
        assert capsys.readouterr().out.startswith("runtime:\n") == (rank == "0")
        monkeypatch.setattr(sys, "argv", ["main", "--config", str(CONFIGS / "missing.yaml")])
        with pytest.raises(ConfigError, match=r"missing\.yaml: cannot .*read.*: No such file"):
            main.main()
    assert not dist.is_initialized()


def test_the_program_prints_one_message_and_exits_with_status_2():
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "projects.home.recap.main",
            "--config",
            CONFIGS / "local.yaml",
            "--set",
            "train_data.lanes=0",
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    first, second = ended.stderr.splitlines()
    assert re.match(rf"error: {CONFIGS / 'local.yaml'}: 1 \w+$", first)
    assert re.match(r"  train_data.lanes \(--set train_data.lanes=0\): 0 .*greater than 0$", second)
