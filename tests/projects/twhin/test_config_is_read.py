"""Every field of the configuration is read by the code that trains."""

import sys
from pathlib import Path

import pytest

from core import command_line
from core.config import load_config_from_yaml
from projects.twhin import main
from projects.twhin.config import TwhinConfig
from projects.twhin.data.config import NamedRelations
from tests.support.config_fields import RATES, Field, Recorder, config_classes, fields_within, names

SHIPPED = sorted((Path(main.__file__).parent / "configs").glob("*.yaml"))

ROWS = 1000
"""Number of rows of every table: the number of users of the generated graph."""

TABLE = "model.embeddings.tables[0]"
# Fields that a shipped configuration may leave null, false or unset in favor of another member of a group.
OPTIONS = [
    [
        "runtime.enable_amp=true",
        "training.checkpoint_max_to_keep=2",
        "training.checkpoint_keep_best={partition: validation, metric: auc, mode: max}",
        "training.early_stopping={partition: validation, metric: auc, mode: max, patience: 1, min_delta: 0.1}",
        "training.eval_every_n=null",
        "runtime.wandb={key_path: $KEY_PATH, host: 'http://localhost:9', name: n, tags: [t], metadata: {a: 1}}",
        f"{TABLE}.optimizer={{sgd: {{}}}}",
        f"{TABLE}.data_type=fp16",
        f"{TABLE}.pretrained={{emb_name: $TABLE, embedding_snapshot_uri: $CHECKPOINT}}",
        "model.embeddings.tables_to_log=[$TABLE]",
        "model.regularization={n3: 0.1, operators: true}",
        "model.translation_optimizer={adam: {lr: 0.1}}",
        "metrics={candidates: 10, known_edges: [$DATA/validation]}",
    ],
    [
        f"{TABLE}.optimizer={{row_wise_adagrad: {{}}}}",
        f"{TABLE}.vocab=$DATA/vocabulary/user.parquet",
        "model.loss=margin",
        "model.regularization={l2: 0.1}",
        "model.translation_optimizer={sgd: {lr: 0.1, momentum: 0.5}}",
        "train_data.global_batch_size=null",
        "train_data.per_replica_batch_size=48",
        "train_data.lanes=4",
        "train_data.limit=200",
        "train_data.offset=10",
        "train_data.shuffle_window=100",
        "validation_data={data_root: $DATA/validation, global_batch_size: 48}",
    ],
    [f"{TABLE}.optimizer={{adagrad: {{}}}}", "model.translation_optimizer={adagrad: {lr: 0.1}}"],
    ["validation_data={}"],
]


def on_small_data(path: Path, data: Path, save_dir: Path) -> list[str]:
    """Return overrides with which the configuration at `path` trains a small model for two small steps on `data`."""
    config = load_config_from_yaml(TwhinConfig, path)
    overrides = [f"training.save_dir={save_dir}", "training.num_train_steps=2", "training.num_eval_steps=1"]
    for index, table in enumerate(config.model.embeddings.tables):
        key_path = f"model.embeddings.tables[{index}]"
        overrides += [f"{key_path}.num_embeddings={ROWS}", f"{key_path}.embedding_dim=8"]
        if table.vocab is not None:
            overrides.append(f"{key_path}.vocab={data}/vocabulary/user.parquet")
    for key_path, part in config.data_sets().items():
        batch_size = "per_replica" if part.global_batch_size is None else "global"
        overrides += [
            f"{key_path}.data_root={data}/{'train' if key_path == 'train_data' else 'validation'}",
            f"{key_path}.{batch_size}_batch_size=48",
        ]
    if isinstance(config.model.relations, NamedRelations):
        overrides.append("model.relations.names_path=$RELATIONS")
    if config.metrics.known_edges:
        overrides.append(f"metrics.known_edges=[{data}/validation]")
    return overrides


@pytest.fixture(scope="module")
def runs(twhin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[set[Field], set[Field]]]:
    """Train each shipped configuration as it is and with options. Return the fields that it has and those that were
    read, over all its runs."""
    directory = tmp_path_factory.mktemp("runs")
    relations = directory / "relations.txt"
    relations.write_text("fav\nreply\nretweet\nmagic_recs\n")
    key_file = directory / "key"
    key_file.write_text("0" * 40)
    key_file.chmod(0o600)
    found = {}
    with pytest.MonkeyPatch.context() as patcher:
        patcher.setenv("KEY_PATH", str(key_file))
        patcher.setenv("WANDB_MODE", "disabled")
        patcher.setenv("RELATIONS", str(relations))
        patcher.setenv("DATA", str(twhin_data))
        patcher.setattr(command_line, "setup_logging", lambda _: None)
        for path in SHIPPED:
            recorder = Recorder()
            has: set[Field] = set()
            patcher.setenv("TABLE", load_config_from_yaml(TwhinConfig, path).model.embeddings.tables[0].name)
            patcher.setenv("CHECKPOINT", str(directory / f"{path.stem}-0/checkpoints/2"))
            others = [
                [*options, f"{TABLE}.optimizer.learning_rate={rate}"]
                for options, rate in zip(OPTIONS, RATES, strict=True)
            ]
            for index, options in enumerate([[], *others]):
                overrides = [*on_small_data(path, twhin_data, directory / f"{path.stem}-{index}"), *options]
                arguments = [word for override in overrides for word in ("--set", override)]
                patcher.setattr(sys, "argv", ["main", "--config", str(path), *arguments])
                has |= fields_within(load_config_from_yaml(TwhinConfig, path, overrides))
                with pytest.MonkeyPatch.context() as recording:
                    recorder.patch(recording)
                    assert main.main() == 0
            found[path] = has, recorder.fields
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_field_of_a_shipped_configuration_is_read(runs, path):
    has, read = runs[path]
    assert len(read) > 60, "the recorder sees too few fields"
    assert fields_within(load_config_from_yaml(TwhinConfig, path)) <= has
    assert names(has - read) == []


def test_every_field_of_every_class_is_read_in_some_run(runs):
    fields = {(kind, name) for kind in config_classes(TwhinConfig, set()) for name in kind.model_fields}
    assert names(fields - set.union(*(read for _, read in runs.values()))) == []
