"""The program writes the ranks that the evaluation's metrics are means of."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from projects.twhin.data.config import TwhinDataConfig
from projects.twhin.data.relations import SIDES
from projects.twhin.data.vocabulary import write_vocabulary
from projects.twhin.main import main as train
from projects.twhin.model.config import RankingConfig
from projects.twhin.predict.__main__ import main
from tests.projects.twhin.data.test_edges import write
from tests.projects.twhin.predict.test_top_k import run_program
from tests.support.runs import small_twhin_run
from tests.support.saved_twhin import with_vocabulary, write_run
from tests.support.toy_twhin import model_config, random_edges, score, scorer_of, table_rows

KINDS = ("filtered", "raw")


def ranks_of(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the ranks by kind, [edges, 2]."""
    table = pq.read_table(path / "ranks.parquet")
    return {
        kind: np.stack([table[f"{kind}_{side}_rank"].to_numpy() for side in ("head", "tail")], axis=1)
        for kind in KINDS
        if f"{kind}_head_rank" in table.column_names
    }


def evaluated_metrics(save_dir: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (save_dir / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = [line for line in lines if line["mode"] == "evaluate"][-1]["metrics"]
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.operator_sides=rhs", "model.comparator=cos", "validation_data.validation.limit=77"),
        ("metrics.candidates=100", "validation_data.validation.offset=13", "metrics.known_edges=[{data}/test]"),
    ],
)
def test_the_means_of_the_ranks_are_those_of_the_evaluation(twhin_data, tmp_path, monkeypatch, capsys, overrides):
    settings = [each.format(data=twhin_data) for each in overrides]
    save_dir = tmp_path / "run"
    arguments = small_twhin_run(
        twhin_data, save_dir, "training.num_train_steps=4", "training.num_eval_steps=-1", *settings
    )
    monkeypatch.setattr(sys, "argv", ["main", *arguments])
    assert train() == 0
    capsys.readouterr()
    run_program(monkeypatch, "--checkpoint", save_dir, "--ranks", "validation", "--out", tmp_path / "out")
    metrics = evaluated_metrics(save_dir)
    for kind, ranks in ranks_of(tmp_path / "out").items():
        assert len(ranks) == metrics["examples"]
        assert (1 / ranks).mean() == pytest.approx(metrics[f"{kind}/mrr"], rel=1e-14)
        assert ranks.mean() == pytest.approx(metrics[f"{kind}/mean_rank"], rel=1e-14)
        assert (ranks <= 10).mean() == pytest.approx(metrics[f"{kind}/hits@10"], rel=1e-14)
        assert np.std(ranks) > 1
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("both"))
    assert row[:3] == ["both", "filtered", f"{metrics['filtered/mrr']:.4f}"]
    edges = pq.read_table(tmp_path / "out" / "ranks.parquet")
    stored = pq.read_table(twhin_data / "validation")
    begin = 13 if "offset" in str(overrides) else 0
    for name in ("lhs", "rel", "rhs"):
        assert edges[name].to_pylist() == stored[name].to_pylist()[begin : begin + len(edges)]


@pytest.fixture
def known_and_edges() -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    config = model_config()
    return random_edges(config, 200, seed=1), random_edges(config, 45)


def written(path: Path, edges: list[tuple[int, int, int]]) -> Path:
    return write(path, {name: [edge[index] for edge in edges] for index, name in enumerate(("lhs", "rel", "rhs"))}, 7)


@pytest.mark.parametrize("sides", ["both", "lhs"])
def test_ranks_of_files_equal_a_loop_over_candidates(tmp_path, monkeypatch, known_and_edges, sides):
    """Edges have ids of many segments, so a batch is not in the order of the file."""
    monkeypatch.setattr("projects.twhin.predict.ranks._BATCH_SIZE", 16)
    known, edges = known_and_edges
    config = model_config(operator_sides=sides)
    checkpoint = write_run(tmp_path / "run", config)
    options = ["--ranks", written(tmp_path / "edges.parquet", edges), "--out", tmp_path / "out"]
    run_program(
        monkeypatch, "--checkpoint", checkpoint, *options, "--known", written(tmp_path / "known.parquet", known)
    )
    rows = pq.read_table(tmp_path / "out" / "ranks.parquet").to_pylist()
    assert [(row["lhs"], row["rel"], row["rhs"]) for row in rows] == edges
    scorer = scorer_of(config).float()
    tables = {name: each.detach().float().double() for name, each in table_rows(config).items()}
    for row, edge in zip(rows, edges, strict=True):
        relation = config.relation_list[edge[1]]
        assert (row["head"], row["relation"], row["tail"]) == (edge[0], relation.name, edge[2])
        for side, name in zip(SIDES, ("head", "tail"), strict=True):
            own = score(config, scorer, tables, edge, side)
            expected = {"raw": 1, "filtered": 1}
            for candidate in range(len(tables[getattr(relation, side)])):
                other = (candidate, *edge[1:]) if side == "lhs" else (*edge[:2], candidate)
                if score(config, scorer, tables, other, side) > own and other != edge:
                    expected["raw"] += 1
                    expected["filtered"] += other not in {*known, *edges}
            assert {kind: row[f"{kind}_{name}_rank"] for kind in KINDS} == expected


def test_known_edges_of_the_run_are_replaced_by_those_of_the_option(tmp_path, monkeypatch, known_and_edges):
    known, edges = known_and_edges
    train_path, edges_path = written(tmp_path / "train.parquet", known), written(tmp_path / "edges.parquet", edges)
    other = {"validation": TwhinDataConfig(data_root=str(edges_path), global_batch_size=4, limit=30)}
    checkpoint = write_run(tmp_path / "run", model_config(), data_root=str(train_path), validation_data=other)
    found = {}
    for name, options in {"default": [], "option": ["--known", train_path], "none": ["--known", edges_path]}.items():
        out = tmp_path / name
        run_program(monkeypatch, "--checkpoint", checkpoint, "--ranks", "validation", "--out", out, *options)
        found[name] = ranks_of(out)
    assert all(len(ranks["raw"]) == 30 for ranks in found.values())
    assert np.array_equal(found["default"]["filtered"], found["option"]["filtered"])
    assert (found["none"]["filtered"] > found["default"]["filtered"]).any()
    train_path.unlink()
    monkeypatch.setattr(
        sys, "argv", ["predict", "--checkpoint", str(checkpoint), "--ranks", "validation", "--out", "x"]
    )
    with pytest.raises(UserError, match=rf"^{train_path}: no file matches.*--known"):
        main()
    assert not Path("x").exists()


def test_a_run_without_filtered_ranks_gets_raw_ranks(tmp_path, monkeypatch, known_and_edges):
    edges_path = written(tmp_path / "edges.parquet", known_and_edges[1])
    checkpoint = write_run(tmp_path / "run", model_config(), metrics=RankingConfig(filtered=False))
    run_program(monkeypatch, "--checkpoint", checkpoint, "--ranks", edges_path, "--out", tmp_path / "out")
    assert ranks_of(tmp_path / "out").keys() == {"raw"}


def test_rows_beyond_the_vocabulary_have_ranks_but_no_names(tmp_path, monkeypatch):
    write_vocabulary(vocabulary := tmp_path / "vocabulary" / "user.parquet", pa.array(["ann", "bob"]))
    checkpoint = write_run(tmp_path / "run", with_vocabulary(model_config(), vocabulary))
    edges_path = written(tmp_path / "edges.parquet", [(1, 1, 3), (2, 1, 4), (10, 0, 0)])
    options = ["--ranks", edges_path, "--known", edges_path, "--out", tmp_path / "out"]
    run_program(monkeypatch, "--checkpoint", checkpoint, *options)
    rows = pq.read_table(tmp_path / "out" / "ranks.parquet").to_pylist()
    assert [(row["head"], row["tail"]) for row in rows] == [("bob", "3"), (None, "4"), (None, "ann")]
    assert all(1 <= row["raw_head_rank"] <= 11 for row in rows)


def test_an_unknown_partition_is_an_error(tmp_path, monkeypatch):
    data = {"dev": TwhinDataConfig(data_root="x", global_batch_size=4)}
    checkpoint = write_run(tmp_path / "run", model_config(), validation_data=data)
    options = ["--checkpoint", str(checkpoint), "--ranks", "validation", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["predict", *options])
    with pytest.raises(UserError, match=r"^--ranks validation: not a partition of the run \(dev\).*no file matches"):
        main()
    assert not (tmp_path / "out").exists()


def test_operators_that_do_not_fit_the_configuration_are_an_error(tmp_path, monkeypatch):
    checkpoint = write_run(tmp_path / "run", model_config())
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    config = tmp_path / "copy" / "config.yaml"
    config.write_text(config.read_text().replace("operator: diagonal", "operator: translation"))
    options = ["--checkpoint", str(tmp_path / "copy"), "--head", "1", "--relation", "fav"]
    monkeypatch.setattr(sys, "argv", ["predict", *options])
    with pytest.raises(UserError, match=f"^{tmp_path}/copy/checkpoints/{checkpoint.name}: the operators"):
        main()
