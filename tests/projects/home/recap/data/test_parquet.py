import json

from projects.home.recap.data.parquet import TASKS, Widths, recap_columns, write_schema_json


def test_schema_json_names_features_and_labels_but_not_the_teacher(tmp_path):
    columns = recap_columns(Widths(continuous=5, binary=3, discrete=2, embedding=4), ids=True, teacher=True)
    write_schema_json(tmp_path / "schema.json", columns)
    entries = json.loads((tmp_path / "schema.json").read_text())["schema"]
    assert {entry["feature_name"]: (entry["dtype"], entry["length"]) for entry in entries} == {
        "continuous": ("float_list", 5),
        "binary": ("int64_list", 3),
        "discrete": ("int64_list", 2),
        "user_embedding": ("float_list", 4),
        "user_eng_embedding": ("float_list", 4),
        "author_embedding": ("float_list", 4),
        "meta__user_id": ("int64_list", 1),
        "meta__author_id": ("int64_list", 1),
        "meta__tweet_id": ("int64_list", 1),
        **dict.fromkeys(TASKS, ("int64_list", 1)),
    }
