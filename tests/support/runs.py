"""Command-line arguments for small runs of both projects, on the data of the fixtures."""

from pathlib import Path

from tests.support.root import ROOT

LOCAL_YAML = ROOT / "projects/home/recap/configs/local.yaml"
TWHIN_LOCAL_YAML = ROOT / "projects/twhin/configs/local.yaml"


def small_run(data: Path, save_dir: Path, *overrides: str) -> list[str]:
    """Return arguments for projects.home.recap.main: local.yaml, 12 steps of 96 rows, log every 3, save every 4."""
    settings = [
        f"training.save_dir={save_dir}",
        "training.num_train_steps=12",
        "training.checkpoint_every_n=4",
        "training.train_log_every_n=3",
        f"train_data.inputs={data}/train",
        f"train_data.seg_dense_schema.schema_path={data}/schema.json",
        "train_data.global_batch_size=96",
        f"validation_data.validation.inputs={data}/validation",
        f"validation_data.validation.seg_dense_schema.schema_path={data}/schema.json",
        "validation_data.validation.global_batch_size=96",
        *overrides,
    ]
    return ["--config", str(LOCAL_YAML), *(word for setting in settings for word in ("--set", setting))]


def small_twhin_run(data: Path, save_dir: Path, *overrides: str) -> list[str]:
    """Return arguments for projects.twhin.main: local.yaml, 12 steps of 600 edges, log every 3, save every 4."""
    settings = [
        f"training.save_dir={save_dir}",
        "training.num_train_steps=12",
        "training.checkpoint_every_n=4",
        "training.train_log_every_n=3",
        "model.embeddings.tables[0].num_embeddings=1000",
        "model.embeddings.tables[1].num_embeddings=600",
        *(
            f"model.embeddings.tables[{index}].vocab={data}/vocabulary/{table}.parquet"
            for index, table in enumerate(("user", "tweet"))
        ),
        f"train_data.data_root={data}/train",
        "train_data.global_batch_size=600",
        "train_data.global_negatives=40",
        "train_data.in_batch_negatives=20",
        f"validation_data.validation.data_root={data}/validation",
        "validation_data.validation.global_batch_size=60",
        *overrides,
    ]
    return ["--config", str(TWHIN_LOCAL_YAML), *(word for setting in settings for word in ("--set", setting))]
