"""The shipped configurations load, and errors in them are reported with file, key path and allowed values."""

import pytest

from common.errors import ConfigError
from core.config import load_config_from_yaml
from projects.twhin.config import TwhinConfig
from tests.support.config_errors import message_about
from tests.support.config_fields import config_classes
from tests.support.runs import TWHIN_LOCAL_YAML

SHIPPED = sorted(TWHIN_LOCAL_YAML.parent.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_load_and_print(path, tmp_path):
    config = load_config_from_yaml(TwhinConfig, path)
    printed = tmp_path / "printed.yaml"
    printed.write_text(config.pretty_print())
    assert load_config_from_yaml(TwhinConfig, printed) == config
    assert load_config_from_yaml(TwhinConfig, printed).pretty_print() == config.pretty_print()


def test_every_class_and_field_has_a_description():
    classes = config_classes(TwhinConfig, set())
    assert len(classes) >= 20
    fields = {f"{kind.__name__}.{name}": field for kind in classes for name, field in kind.model_fields.items()}
    assert [name for name, field in fields.items() if not field.description] == []
    assert [kind.__name__ for kind in classes if not kind.__doc__] == []


# --- The identity of a run ---

TABLE = "model.embeddings.tables[0]"


@pytest.mark.parametrize(
    "overrides",
    [
        ["validation_data={}"],
        ["metrics={candidates: 100, filtered: false}"],
        ["model.embeddings.tables_to_log=null"],
        [f"{TABLE}.sharding=table_wise"],
        [f"{TABLE}.vocab=null"],
        [f"{TABLE}.pretrained={{emb_name: user, embedding_snapshot_uri: gone}}"],
        ["train_data.prefetch_batches=1", "train_data.decode_threads=2"],
        ["train_data.global_batch_size=null", "train_data.per_replica_batch_size=6000"],
        ["train_data.lanes=24"],
    ],
)
def test_keys_that_training_does_not_depend_on_are_not_part_of_the_identity(overrides):
    one = load_config_from_yaml(TwhinConfig, TWHIN_LOCAL_YAML)
    other = load_config_from_yaml(TwhinConfig, TWHIN_LOCAL_YAML, overrides)
    assert one != other
    assert one.identity() == other.identity()


@pytest.mark.parametrize(
    "override",
    [
        "model.comparator=cos",
        "model.relations[0].operator=linear",
        f"{TABLE}.data_type=fp16",
        f"{TABLE}.optimizer.learning_rate={{constant: 0.1}}",
        "train_data.limit=100",
        "train_data.offset=100",
        "train_data.in_batch_negatives=0",
        "train_data.lanes=12",
        "train_data.shuffle_window=1000",
        "train_data.global_batch_size=600",
    ],
)
def test_keys_that_training_depends_on_are_part_of_the_identity(override):
    one = load_config_from_yaml(TwhinConfig, TWHIN_LOCAL_YAML)
    other = load_config_from_yaml(TwhinConfig, TWHIN_LOCAL_YAML, [override])
    assert one.identity() != other.identity()


# --- One evaluation set, or several by name ---


def test_sizes_per_process_become_those_of_the_number_of_processes_that_a_run_was_trained_on():
    overrides = ["train_data.global_batch_size=null", "train_data.per_replica_batch_size=300"]
    config = load_config_from_yaml(TwhinConfig, TWHIN_LOCAL_YAML, overrides)
    sizes = []
    for world_size in (2, 5):
        data = config.as_trained_on(world_size).train_data
        sizes.append((data.global_batch_size, data.per_replica_batch_size, data.lanes))
    assert sizes == [(600, None, 24), (1500, None, 5)]
    assert config.as_trained_on(5).identity() == config.as_trained_on(5).as_trained_on(2).identity()


@pytest.mark.parametrize(
    ("validation_data", "partitions", "key_paths"),
    [
        ("{data_root: d, global_batch_size: 4}", ["validation"], ["validation_data"]),
        ("{data_root: d, limit: null, global_batch_size: 4}", ["validation"], ["validation_data"]),
        ("{a: {data_root: d, global_batch_size: 4}}", ["a"], ["validation_data.a"]),
        (
            "{limit: {data_root: d, global_batch_size: 4}, b: {data_root: e, per_replica_batch_size: 2}}",
            ["limit", "b"],
            ["validation_data.limit", "validation_data.b"],
        ),
        ("{}", [], []),
    ],
)
def test_validation_data_is_one_evaluation_set_or_several_by_name(tmp_path, validation_data, partitions, key_paths):
    config = load_config_from_yaml(TwhinConfig, TWHIN_LOCAL_YAML, [f"validation_data={validation_data}"])
    assert list(config.evaluation_data) == partitions
    assert list(config.data_sets()) == ["train_data", *key_paths]
    printed = tmp_path / "printed.yaml"
    printed.write_text(config.pretty_print())
    assert load_config_from_yaml(TwhinConfig, printed) == config


# --- Wrong values, set by overrides of local.yaml ---

OPTIMIZER = "optimizer: {sgd: {lr: 0.1}}"
TABLES = [f"{{name: {name}, num_embeddings: 9, embedding_dim: 4, {OPTIMIZER}}}" for name in ("user", "tweet", "list")]


@pytest.mark.parametrize(
    ("override", "key_path", "given", "allowed"),
    [
        # Keys.
        ("model.relation=[]", "model.relation", "unknown key", "did you mean 'relations'?"),
        ("train_data.inputs=d", "train_data.inputs", "unknown key", "allowed here: data_root, per_replica_batch_size"),
        ("train_data={global_batch_size: 4}", "train_data.data_root", "missing", "it has no default"),
        # Tables.
        (f"{TABLE}.name=a.b", f"{TABLE}.name", ": 'a.b' ", "must not be empty or contain '.', '/' or control"),
        (f'{TABLE}.name="a\\0"', f"{TABLE}.name", "is invalid", "control characters"),
        (f"{TABLE}.name=''", f"{TABLE}.name", ": '' ", "must not be empty"),
        (f"{TABLE}.name={'ü' * 101}", f"{TABLE}.name", "is invalid", "longer than 200 bytes"),
        (f"{TABLE}.name=tweet", "model.embeddings", "tweet", "names must differ"),
        (f"{TABLE}.num_embeddings=0", f"{TABLE}.num_embeddings", ": 0 ", "greater than 0"),
        (f"{TABLE}.embedding_dim=0", f"{TABLE}.embedding_dim", ": 0 ", "greater than 0"),
        (f"{TABLE}.init_scale=0", f"{TABLE}.init_scale", ": 0 ", "greater than 0"),
        (f"{TABLE}.init_scale=1e5", f"{TABLE}.init_scale", ": 1e5 ", "equal to 10000"),
        (f"{TABLE}.embedding_dim=1000000000000", f"{TABLE}.embedding_dim", ": 1000000000000 ", "equal to 16777216"),
        (
            "model.translation_optimizer={adagrad: {eps: 1e-60, lr: 1}}",
            "model.translation_optimizer.adagrad.eps",
            ": 1e-60 ",
            "at least 1e-37",
        ),
        (f"{TABLE}.data_type=fp8", f"{TABLE}.data_type", ": 'fp8' ", "'fp32' or 'fp16'"),
        (f"{TABLE}.sharding=data_parallel", f"{TABLE}.sharding", ": 'data_parallel' ", "'row_wise' or"),
        (
            f"{TABLE}.optimizer.learning_rate=null",
            f"{TABLE}.optimizer",
            "no learning rate",
            "lr",
        ),
        (f"{TABLE}.optimizer.sgd={{}}", f"{TABLE}.optimizer", "set: sgd, adagrad", "exactly one of"),
        ("model.embeddings.tables=[]", "model.embeddings.tables", "not 0", "at least 1 item"),
        ("model.embeddings.tables_to_log=[usr]", "model.embeddings", "usr", "are user, tweet"),
        # Relations.
        (
            "model.relations[0].operator=rotation",
            "model.relations[0].operator",
            ": 'rotation' ",
            "'identity', 'translation', 'diagonal', 'linear' or 'complex_diagonal'",
        ),
        ("model.relations=[]", "model.relations", "not 0", "at least 1 item"),
        ("model.relations=fav", "model.relations", ": 'fav' ", "should be a list"),
        ("model.relations={lhs: user, rhs: tweet}", "model.relations.names_path", "missing", "it has no default"),
        ("model.relations={names_path: n, lhs: user, rhs: tw}", "model", "relation(s) (n): ", "no table tw. "),
        ("model.relations[1].name=fav", "model", "several relations are named fav", "a unique name"),
        ("model.relations[1].rhs=twete", "model", "relation(s) reply: ", "no table twete. "),
        (
            f"{TABLE}.embedding_dim=16",
            "model.embeddings",
            "embedding_dim differs (user 16, tweet 32)",
            "dimension",
        ),
        (f"model.embeddings.tables=[{', '.join(TABLES)}]", "model", "uses the table list", "add a relation"),
        (
            "model.translation_optimizer={row_wise_adagrad: {lr: 0.1}}",
            "model",
            "translation_optimizer: row_wise_adagrad is for tables",
            "Use adagrad",
        ),
        # The loss.
        ("model.comparator=cosine", "model.comparator", ": 'cosine' ", "'dot', 'cos' or 'l2'"),
        ("model.margin=0.0", "model.margin", ": 0.0 ", "greater than 0"),
        ("model.margin=1e300", "model.margin", ": 1e300 ", "at most 3.4e+38"),
        (
            "validation_data={a/b: {data_root: d, global_batch_size: 4}}",
            "validation_data.a/b",
            "the key is invalid",
            "slash",
        ),
        ("model.regularization={n3: 1.0, l2: 1.0}", "model.regularization", "set: n3, l2", "at most one of"),
        ("model.regularization.operators=true", "model.regularization", "neither n3 nor l2", "Set one of them"),
        # Data.
        (
            "train_data.per_replica_batch_size=4",
            "train_data",
            "set: per_replica_batch_size, global_batch_size",
            "exactly one of",
        ),
        ("train_data.global_batch_size=null", "train_data", "set: none", "exactly one of per_replica_batch_size, "),
        ("train_data.limit=0", "train_data.limit", ": 0 ", "greater than 0"),
        ("train_data.offset=-1", "train_data.offset", ": -1 ", "or equal to 0"),
        ("train_data.global_negatives=-1", "train_data.global_negatives", ": -1 ", "or equal to 0"),
        ("validation_data=d", "validation_data", ": 'd' ", "should be a mapping"),
        ("validation_data={data_root: d}", "validation_data", "set: none", "exactly one of"),
        ("validation_data={limit: 1, global_batch_size: 4}", "validation_data.data_root", "missing", "no default"),
        ("validation_data={v: {data_root: d}}", "validation_data.v", "set: none", "exactly one of"),
        (
            "validation_data={v: {data_root: d, global_batch_size: 0}}",
            "validation_data.v.global_batch_size",
            ": 0 ",
            "greater than 0",
        ),
        # Evaluation.
        ("metrics.hits_at=[1, 1]", "metrics.hits_at", "1 is given more than once", "Give each value once"),
        ("metrics.candidates=0", "metrics.candidates", ": 0 ", "greater than 0"),
        # Options that do not work with tables that have optimizers of their own.
        (
            "runtime={enable_amp: true, amp_dtype: float16}",
            "(top level)",
            "runtime.amp_dtype: float16 needs a GradScaler",
            "Use bfloat16",
        ),
        (
            "training.gradient_accumulation=2",
            "(top level)",
            "training.gradient_accumulation is 2",
            "raise the batch size instead",
        ),
        (
            "training.ema_decay=0.9",
            "(top level)",
            "training.ema_decay: tables have no moving average",
            "Remove this key",
        ),
        ("training.max_grad_norm=1.0", "(top level)", "training.max_grad_norm: tables are", "lower the learning rates"),
        (
            "train_data={data_root: x, global_batch_size: 24}",
            "(top level)",
            "train_data: global_negatives and in_batch_negatives are both 0",
            "Raise one of them",
        ),
    ],
)
def test_a_wrong_value_is_reported_with_file_key_path_and_allowed_values(override, key_path, given, allowed):
    message = message_about(key_path, TwhinConfig, TWHIN_LOCAL_YAML, override)
    assert given in f": {message}", "`given` may begin with the colon"
    assert allowed in message


def test_a_single_evaluation_set_with_an_unknown_key_is_reported_as_such():
    with pytest.raises(ConfigError) as caught:
        load_config_from_yaml(
            TwhinConfig, TWHIN_LOCAL_YAML, ["validation_data={data_rot: d, per_replica_batch_size: 4}"]
        )
    assert "validation_data.data_rot (--set " in str(caught.value)
    assert "unknown key; did you mean 'data_root'?" in str(caught.value)
