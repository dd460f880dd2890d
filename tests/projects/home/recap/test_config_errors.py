"""Messages about errors in configurations, each a change of a shipped one."""

import re

import pytest

from common.errors import ConfigError
from core.config import load_config_from_yaml
from projects.home.recap.config import RecapConfig
from projects.home.recap.data.parquet import TASKS
from tests.projects.home.recap.test_config import CONFIGS
from tests.support.config_errors import message_about

LOCAL = (CONFIGS / "local.yaml").read_text()

# --- Values, from overrides of local.yaml ---

TOWER = "model.tasks[recap.engagement.is_replied]"
RATES = "optimizer.multi_task_learning_rates"
BLOCK = "model.backbone.mask_net_config.mask_blocks[0]"
NORM = "model.featurization_config.double_norm_log_config"
PREPROCESS = "train_data.preprocess"
DATA = "{inputs: d, global_batch_size: 8, seg_dense_schema: {schema_path: s}, tasks: {a: {}}}"
RECTIFY = "served_timestamp_field: s, impressed_timestamp_field: i, label_to_engaged_timestamp_field"


@pytest.mark.parametrize(
    ("override", "key_path", "found", "allowed"),
    [
        # Keys.
        ("training.num_train_step=1", "training.num_train_step", "unknown key", "did you mean 'num_train_steps'"),
        ("traning={}", "traning", "unknown key", "did you mean 'training'"),
        (
            "model.dropout=0.1",
            "model.dropout",
            "unknown key",
            "allowed here: tasks, ",
        ),
        (f"{TOWER}.mlp_config.layer_size=[1]", f"{TOWER}.mlp_config.layer_size", "unknown key", "'layer_sizes'"),
        # Types.
        ("training.num_train_steps=many", "training.num_train_steps", "^'many' ", "a valid integer"),
        ("training.num_train_steps=1.5", "training.num_train_steps", r"^1\.5 ", "a valid integer"),
        ("training.num_train_steps='10'", "training.num_train_steps", "^'10' ", "a valid integer"),
        ("training.num_train_steps=true", "training.num_train_steps", "^true ", "a valid integer"),
        ("training.num_train_steps=null", "training.num_train_steps", "^null ", "a valid integer"),
        ("runtime.enable_amp=1", "runtime.enable_amp", "^1 ", "a valid boolean"),
        ("train_data.lanes=yes", "train_data.lanes", r"^yes \(.*\btrue\b.*\) ", "a valid integer"),
        ("train_data.inputs=7", "train_data.inputs", "^7 ", "a valid string"),
        ("train_data=null", "train_data", "^null ", "a mapping"),
        ("train_data.tasks=[a]", "train_data.tasks", "^a list ", "a mapping"),
        (f"{TOWER}.mlp_config.layer_sizes=1", f"{TOWER}.mlp_config.layer_sizes", "^1 ", "a list"),
        (
            f"{TOWER}.mlp_config.layer_sizes=[8, 1.0]",
            f"{TOWER}.mlp_config.layer_sizes[1]",
            r"^1\.0 ",
            "a valid integer",
        ),
        ("optimizer.adam.epsilon=.nan", "optimizer.adam.epsilon", r"^\.nan ", "finite number"),
        # Bounds.
        ("training.num_train_steps=0", "training.num_train_steps", "^0 ", "greater than 0"),
        ("training.max_grad_norm=-1.0", "training.max_grad_norm", r"^-1\.0 ", "greater than 0"),
        ("training.num_epochs=0", "training.num_epochs", "^0 ", "greater than 0"),
        ("runtime.seed=-1", "runtime.seed", "^-1 ", "greater than or equal to 0"),
        ("optimizer.adam.beta_1=1", "optimizer.adam.beta_1", "^1 ", "less than 1"),
        ("optimizer.adam.epsilon=0", "optimizer.adam.epsilon", "^0 ", "greater than 0"),
        (f"{TOWER}.pos_weight=0", f"{TOWER}.pos_weight", "^0 ", "greater than 0"),
        (f"{TOWER}.loss_weight=0", f"{TOWER}.loss_weight", "^0 ", "greater than 0"),
        (f"{TOWER}.label_smoothing=1", f"{TOWER}.label_smoothing", "^1 ", "less than 1"),
        (f"{TOWER}.mlp_config.dropout.rate=-0.1", f"{TOWER}.mlp_config.dropout.rate", r"^-0\.1 ", "greater than 0"),
        (f"{TOWER}.mlp_config.dropout.rate=1", f"{TOWER}.mlp_config.dropout.rate", "^1 ", "less than 1"),
        (
            f"{TOWER}.mlp_config.batch_norm.momentum=0",
            f"{TOWER}.mlp_config.batch_norm.momentum",
            "^0 ",
            "greater than 0",
        ),
        (f"{NORM}.clip_magnitude=0", f"{NORM}.clip_magnitude", "^0 ", "greater than 0"),
        # Numbers that float32 or int64 cannot hold.
        (f"{NORM}.clip_magnitude=1e300", f"{NORM}.clip_magnitude", "^1e300 ", "at most 3.4e[+]38"),
        ("optimizer.adam.epsilon=1e-50", "optimizer.adam.epsilon", "^1e-50 ", "at least 1e-37"),
        ("optimizer.adam.beta_2=0.99999999999", "optimizer.adam.beta_2", "^0.99999999999 ", "at most 0.9999999"),
        (f"{TOWER}.pos_weight=1e300", f"{TOWER}.pos_weight", "^1e300 ", "at most 3.4e[+]38"),
        (f"{TOWER}.affine_map.bias=-1e300", f"{TOWER}.affine_map.bias", "^-1e300 ", "at most 3.4e[+]38"),
        (f"{BLOCK}.output_size=1000000000000", f"{BLOCK}.output_size", "^1000000000000 ", "equal to 16777216"),
        ("runtime.hang_dump_after_in_s=1e-300", "runtime.hang_dump_after_in_s", "^1e-300 ", "equal to 0.1"),
        # Names.
        (f"validation_data[a/b]={DATA}", "validation_data.a/b", "^the key is invalid", "slash"),
        (f"validation_data['']={DATA}", 'validation_data[""]', "^the key is invalid", "empty"),
        (f"{NORM}.layer_norm_config.axis=1", f"{NORM}.layer_norm_config.axis", "^1 ", "should be -1"),
        (f"{TOWER}.mlp_config.layer_sizes=[0, 1]", f"{TOWER}.mlp_config.layer_sizes[0]", "^0 ", "greater than 0"),
        (f"{TOWER}.mlp_config.layer_sizes=[]", f"{TOWER}.mlp_config.layer_sizes", "not 0", "at least 1 item"),
        (
            "model.backbone.mask_net_config.mask_blocks=[]",
            "model.backbone.mask_net_config.mask_blocks",
            "not 0",
            "least 1",
        ),
        ("model.tasks={}", "model.tasks", "not 0", "at least 1 item"),
        ("train_data.global_batch_size=0", "train_data.global_batch_size", "^0 ", "greater than 0"),
        ("train_data.inputs=''", "train_data.inputs", "^'' ", "at least 1 character"),
        ("train_data.num_files_to_keep=0", "train_data.num_files_to_keep", "^0 ", "greater than 0"),
        (
            "train_data.tasks[recap.engagement.is_replied].neg_downsampling_rate=1.5",
            "train_data.tasks[recap.engagement.is_replied].neg_downsampling_rate",
            r"^1\.5 ",
            "less than or equal to 1",
        ),
        (
            f"{PREPROCESS}.rectify_labels={{label_rectification_window_in_hours: 0, {RECTIFY}: {{is_replied: e}}}}",
            f"{PREPROCESS}.rectify_labels.label_rectification_window_in_hours",
            "^0 ",
            "greater than 0",
        ),
        (
            f"{PREPROCESS}.rectify_labels={{{RECTIFY}: {{}}}}",
            f"{PREPROCESS}.rectify_labels.label_to_engaged_timestamp_field",
            "not 0",
            "at least 1 item",
        ),
        (
            f"{PREPROCESS}.extract_features.extract_feature_table=[{{name: a, source_tensor: discrete, index: -1}}]",
            f"{PREPROCESS}.extract_features.extract_feature_table[0].index",
            "^-1 ",
            "greater than or equal to 0",
        ),
        (
            f"{PREPROCESS}.downsample_negatives={{num_engagements: 10}}",
            f"{PREPROCESS}.downsample_negatives.batch_multiplier",
            "missing",
            "no default",
        ),
        (
            f"{PREPROCESS}.downsample_negatives={{batch_multiplier: 0, num_engagements: 10}}",
            f"{PREPROCESS}.downsample_negatives.batch_multiplier",
            "^0 ",
            "greater than 0",
        ),
        # Choices.
        (
            f"{PREPROCESS}.downcast.features={{continuous: int8}}",
            f"{PREPROCESS}.downcast.features.continuous",
            "^'int8' ",
            "'bfloat16', 'bool', 'float32', 'float16' or 'uint8'",
        ),
        ("runtime.amp_dtype=fp16", "runtime.amp_dtype", "^'fp16' ", "'bfloat16' or 'float16'"),
        ("model.multi_task_type=share", "model.multi_task_type", "^'share' ", "'share_none', 'share_all' or"),
        (
            "model.multi_task_type=share_none",
            "model",
            r"share_none \(the default\).*no backbone",
            "share_all or share_partial, or set backbone to null",
        ),
        (
            "model.score_weights={is_replied: 13.5, recap.engagement.is_replied: 13.5}",
            "model",
            "score_weights has is_replied",
            "not in tasks",
        ),
        ("model.score_weights={}", "model.score_weights", "not 0", "at least 1 item"),
        ("model.backbone=null", "model", "share_all.*needs a backbone", "choose share_none"),
        (
            "model.small_embeddings.tables=[&t {name: a.b, num_embeddings: 2, embedding_dim: 1, index: 0}, "
            "{<<: *t, name: a/b}]",
            "model.small_embeddings.tables",
            "two tables are named a.b, a/b",
            r"only in '\.' and '/'",
        ),
        (
            "model.small_embeddings.tables=[{name: a, num_embeddings: 2, embedding_dim: 1, index: -1}]",
            "model.small_embeddings.tables[0].index",
            "^-1 ",
            "greater than or equal to 0",
        ),
        (
            "model.featurization_config.feature_names_to_concat=[discrete]",
            "model.featurization_config.feature_names_to_concat[0]",
            "^'discrete' ",
            "'binary'",
        ),
        # Groups.
        (
            "optimizer.single_task_learning_rate={constant: 0.1}",
            "optimizer",
            "set: multi_task_learning_rates, single_task_learning_rate",
            "exactly one of multi_task_learning_rates, single_task_learning_rate must be set",
        ),
        (
            f"{RATES}=null",
            "optimizer",
            "currently set: none",
            "exactly one of multi_task_learning_rates, single_task_learning_rate",
        ),
        ("optimizer.adam=null", "optimizer", "currently set: none", "exactly one of adam, adamw, adagrad must be set"),
        (
            f"{RATES}.backbone_learning_rate={{}}",
            f"{RATES}.backbone_learning_rate",
            "currently set: none",
            "exactly one of constant",
        ),
        (
            "train_data.inputs=null",
            "train_data",
            "currently set: none",
            "exactly one of inputs, explicit_datetime_inputs, ",
        ),
        (
            "train_data.explicit_date_inputs={data_root: d, end_date: 2023-01-31, days: 1}",
            "train_data",
            "set: inputs, explicit_date_inputs",
            "exactly one of inputs, explicit_datetime_inputs, explicit_date_inputs must be set",
        ),
        (f"{BLOCK}.reduction_factor=2.0", BLOCK, "set: reduction_factor, aggregation_size", "exactly one of"),
        (
            f"{TOWER}.mlp_config=null",
            TOWER,
            "set: none",
            "exactly one of mlp_config, mask_net_config, dcn_config, dlrm_config",
        ),
        # Values that contradict each other.
        (
            f"{TOWER}.mlp_config.layer_sizes=[64, 2]",
            "model.tasks",
            r"the tower recap.engagement.is_replied has layer_sizes \[64, 2\]",
            "last layer has size 1",
        ),
        (
            f"{TOWER}.mlp_config.final_layer_activation=true",
            "model.tasks",
            "the tower recap.engagement.is_replied has final_layer_activation true",
            "no activation",
        ),
        (
            f"{TOWER}={{dcn_config: {{poly_degree: 2, parallel_mlp: {{layer_sizes: [1]}}}}}}",
            "model.tasks",
            "the tower recap.engagement.is_replied does not end with an MLP",
            "last layer has size 1",
        ),
        (
            f"{TOWER}={{dcn_config: {{poly_degree: 1}}}}",
            f"{TOWER}.dcn_config.poly_degree",
            "^1 ",
            "greater than or equal to 2",
        ),
        (
            f"{TOWER}={{dlrm_config: {{bottom_mlp: {{layer_sizes: [3]}}, top_mlp: {{layer_sizes: [3]}}}}}}",
            "model.tasks",
            r"the tower recap.engagement.is_replied has layer_sizes \[3\]",
            "last layer has size 1",
        ),
        (
            "model.position_debias_config={position_feature: shown_at}",
            "model.position_debias_config.position_feature",
            "names a feature of the top-level key features, which is missing",
            "Set position_feature_index",
        ),
        ("model.backbone.pos_weight=2.0", "model.backbone", "affine_map, pos_weight, ", "from the backbone"),
        ("model.backbone.loss_weight=2.0", "model.backbone", "affine_map, pos_weight, ", "from the backbone"),
        ("model.backbone.label_smoothing=0.1", "model.backbone", "affine_map, pos_weight, ", "from the backbone"),
        ("model.backbone.affine_map.bias=1.0", "model.backbone", "affine_map, pos_weight, ", "from the backbone"),
        (
            f"{RATES}.backbone_learning_rate.linear_ramp_to_cosine.final_num_steps=7",
            f"{RATES}.backbone_learning_rate.linear_ramp_to_cosine",
            r"final_num_steps\D*7\b",
            r"num_ramp_steps\D*100\b",
        ),
        (
            f"{RATES}.backbone_learning_rate={{piecewise_constant: "
            "{learning_rate_boundaries: [5], learning_rate_values: [1, 2, 3]}}",
            f"{RATES}.backbone_learning_rate.piecewise_constant",
            r"\b3\b",
            "1 learning_rate_boundaries .* 2 learning_rate_values",
        ),
        (
            f"{RATES}.tower_learning_rates[is_replied]={{constant: 0.1}}",
            "(top level)",
            f"{RATES}.tower_learning_rates has is_replied",
            "not in model.tasks",
        ),
        (
            f"{RATES}.tower_learning_rates={{recap.engagement.is_replied: {{constant: 0.1}}}}",
            "(top level)",
            f"{RATES}.tower_learning_rates lacks recap.engagement.is_favorited, ",
            "every key of model.tasks",
        ),
        (
            "validation_data.validation.tasks={recap.engagement.is_replied: {}}",
            "(top level)",
            "validation_data.validation.tasks lacks recap.engagement.is_favorited, ",
            "every key of model.tasks",
        ),
        (
            "validation_data.validation.evaluation_tasks=[recap.engagement.is_replied, is_liked]",
            "(top level)",
            "validation_data.validation.evaluation_tasks has is_liked",
            "not in model.tasks",
        ),
        (
            "train_data.evaluation_tasks=[recap.engagement.is_replied]",
            "(top level)",
            r"^train_data\.evaluation_tasks is ",
            "a partition to validation_data with the same inputs",
        ),
        (
            f"{PREPROCESS}.rectify_labels={{{RECTIFY}: {{is_liked: e}}}}",
            "train_data",
            "preprocess.rectify_labels.label_to_engaged_timestamp_field has is_liked",
            "not in tasks",
        ),
        (
            f"{PREPROCESS}.extract_features.extract_feature_table=[&a {{name: a, source_tensor: s, index: 1}}, *a]",
            f"{PREPROCESS}.extract_features.extract_feature_table",
            "two rows are named a",
            "unique name",
        ),
        (
            f"{PREPROCESS}.downsample_negatives={{batch_multiplier: 2, engagements_list: [is_liked], "
            "num_engagements: 10}",
            "train_data",
            "preprocess.downsample_negatives.engagements_list has is_liked",
            "not in tasks",
        ),
        (
            "train_data={inputs: i, global_batch_size: 6, lanes: 6, seg_dense_schema: {schema_path: s}, "
            "preprocess: {downsample_negatives: {batch_multiplier: 2, num_engagements: 10}}, "
            f"tasks: {{{': {}, '.join(TASKS)}: {{}}}}}}",
            "train_data",
            "needs at least two rows per lane in a batch",
            "global_batch_size is 6 and lanes is 6. Raise global_batch_size or lower lanes",
        ),
        ("metrics.thresholds=[0.5, 1.0]", "metrics.thresholds[1]", r"^1\.0 ", "less than 1"),
        ("metrics.thresholds=[0.5, 0.5]", "metrics.thresholds", r"\b0.5\b.*(twice|more than once)", "once"),
        (
            "model.stratifiers=[{name: s, index: 0, value: 1}, {name: s, index: 0, value: 2}]",
            "model.stratifiers",
            "two strata are named s",
            "unique name",
        ),
        (
            "model.stratifiers=[{name: a/b, index: 0, value: 1}]",
            "model.stratifiers[0].name",
            "^'a/b' ",
            "slash",
        ),
        (
            "model.stratifiers=[{name: a, index: -1, value: 1}]",
            "model.stratifiers[0].index",
            "^-1 ",
            "or equal to 0",
        ),
        # Values that would harm a run.
        (
            "training.save_dir=gs://bucket/run",
            "training.save_dir",
            "^'gs://bucket/run' ",
            "local or mounted directory",
        ),
        (
            "training.checkpoint_max_to_keep=1",
            "training.checkpoint_max_to_keep",
            "^1 ",
            "at least 2",
        ),
        ("training.num_eval_steps=0", "training.num_eval_steps", "^0 ", "negative number .*whole"),
        ("runtime.wandb.host=localhost", "runtime.wandb.host", "^'localhost' ", "URL .*https://"),
    ],
)
def test_an_invalid_value_is_reported_with_file_key_path_and_allowed_values(override, key_path, found, allowed):
    """`found` and `allowed` are regular expressions; "^" is the start of the message, after the key path."""
    message = message_about(key_path, RecapConfig, CONFIGS / "local.yaml", override)
    assert re.search(found, message)
    assert re.search(allowed, message)


# --- The text of local.yaml ---


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n  num_epochs: 2", "\n\tnum_epochs: 2", r"line {line}, column 1: .*YAML"),
        ("tower_learning_rates:\n", "tower_learning_rates: [\n", "YAML: while parsing a flow sequence"),
        ("multi_task_type: share_all", "multi_task_type: 'share_all", "YAML: "),
        ("&tower ", "", "YAML: found undefined alias 'tower'"),
        (
            "\n  num_epochs: 2",
            "\n  num_epochs: 2\n  num_epochs: 3",
            r"training.num_epochs \(line {next}\): duplicate key, also on line {line}\b",
        ),
        (
            "save_dir: runs/",
            "save_dir: $SURELY_NOT_SET_ANYWHERE/",
            r"training.save_dir \(line {line}\): \$SURELY_NOT_SET_ANYWHERE/recap-local .*"
            "environment variable SURELY_NOT_SET_ANYWHERE is not set",
        ),
        ("\nmodel:\n", "\nmodle:\n", r"\n  modle \(line {line}\): unknown key; did you mean 'model'"),
        ("\nmodel:\n", "\nmodle:\n", r"2 \w+\n  model: missing"),
        ("global_batch_size: 768", "# none", r"train_data.global_batch_size \(line {above}\): missing"),
        ("num_epochs: 2", "num_epochs: two", r"training.num_epochs \(line {line}\): 'two' "),
        (
            "num_epochs: 2",
            "num_epochs: !!int 2",
            r"training.num_epochs \(line {line}\): the tag !!int is not supported",
        ),
    ],
)
def test_an_error_in_the_text_is_reported_with_its_line(tmp_path, old, new, message):
    assert old in LOCAL
    path = tmp_path / "mine.yaml"
    path.write_text(LOCAL.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_config_from_yaml(RecapConfig, path)
    assert str(caught.value).startswith(f"{path}: ")
    line = LOCAL[: LOCAL.index(old.lstrip("\n"))].count("\n") + 1
    above = LOCAL.splitlines().index("train_data:") + 1
    assert re.search(message.format(line=line, next=line + 1, above=above), str(caught.value))


def test_all_errors_are_reported_together():
    with pytest.raises(ConfigError, match=r": 3 \w+\n") as caught:
        load_config_from_yaml(
            RecapConfig,
            CONFIGS / "local.yaml",
            ["training.num_epochs=0", f"{TOWER}.mlp_config.layer_sizes=[]", "optimizer.adam.beta_3=0.5"],
        )
    assert [line.split(" (")[0] for line in str(caught.value).splitlines()[1:]] == [
        "  training.num_epochs",
        f"  {TOWER}.mlp_config.layer_sizes",
        "  optimizer.adam.beta_3",
    ]


# --- Names of tasks ---


@pytest.mark.parametrize(
    ("name", "problem"),
    [("mean", "'mean' is reserved"), ("stratum/new", "is reserved"), ("", "name of a task is empty")],
)
def test_a_task_name_that_metrics_reserve_is_refused(tmp_path, name, problem):
    path = tmp_path / "config.yaml"
    path.write_text(LOCAL.replace("recap.engagement.is_replied:", f"'{name}':"))
    with pytest.raises(ConfigError, match=rf"model\.tasks \(line \d+\): .*{problem}"):
        load_config_from_yaml(RecapConfig, path)


def test_a_task_with_the_name_of_the_shared_parameters_needs_a_single_learning_rate(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(LOCAL.replace("recap.engagement.is_replied:", "backbone:"))
    with pytest.raises(ConfigError, match="the task backbone, which is also the name of the shared parameters"):
        load_config_from_yaml(RecapConfig, path)
    one_rate = ["optimizer.multi_task_learning_rates=null", "optimizer.single_task_learning_rate={constant: 0.1}"]
    assert "backbone" in load_config_from_yaml(RecapConfig, path, one_rate).model.tasks
