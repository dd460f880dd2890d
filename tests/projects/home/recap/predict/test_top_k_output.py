from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.reader.files import DataError, Files
from common.reader.parquet import ParquetTable
from projects.home.recap.predict.columns import CarriedColumns, OutputColumns, calibrated_column
from projects.home.recap.predict.directory import PredictionDirectory
from projects.home.recap.predict.options import Options
from projects.home.recap.predict.output import UnitResult
from projects.home.recap.predict.top_k import TopK
from projects.home.recap.predict.top_k_output import TopKOutput, check_top_k, chosen_top_k
from projects.home.recap.predict.units import Unit
from tests.support.toy import ALONE


def options(**values: Any) -> Options:
    return Options(checkpoint=Path(), best=False, inputs=(), out=Path(), **values)


def test_rows_are_ranked_by_the_score_or_by_a_task():
    assert chosen_top_k(options(), ["like"], has_score=True) is None
    assert chosen_top_k(options(top_k=5), ["like", "reply"], has_score=True) == TopK(5, "score")
    assert chosen_top_k(options(top_k=5, group_by="user"), ["like"], has_score=False) == TopK(
        5, calibrated_column("like"), "user"
    )
    for has_score in (True, False):
        chosen = chosen_top_k(options(top_k=5, rank_by="reply"), ["like", "reply"], has_score=has_score)
        assert chosen == TopK(5, calibrated_column("reply"))


def test_what_ranks_rows_must_be_clear():
    with pytest.raises(UserError, match=r"2 tasks, and no score weights .* --rank_by\. Tasks: like, reply"):
        chosen_top_k(options(top_k=5), ["like", "reply"], has_score=False)
    with pytest.raises(UserError, match=r"--rank_by share: the model has no such task\. Its tasks: like, reply"):
        chosen_top_k(options(top_k=5, rank_by="share"), ["like", "reply"], has_score=True)


def carried(path: Path, columns: dict[str, Any], *names: str, group_by: str | None = None) -> CarriedColumns:
    pq.write_table(pa.table(columns), path / "input.parquet")
    table = ParquetTable(Files((path / "input.parquet",), str(path)), {})
    return CarriedColumns(table, names, OutputColumns(["like"], has_score=True), group_by)


def test_the_column_of_groups_is_carried_through_once(tmp_path):
    columns = {"user": [1, 2], "item": [3, 4]}
    assert carried(tmp_path, columns, "item", group_by="user").names == ["item", "user"]
    assert carried(tmp_path, columns, "user", "item", group_by="user").names == ["user", "item"]
    with pytest.raises(DataError, match=r"no column 'buyer', or more than one, but --group_by names it; columns found"):
        carried(tmp_path, columns, "item", group_by="buyer")


def test_columns_that_do_not_suit_top_k_are_errors(tmp_path):
    check_top_k(TopK(5, "score", "user"), carried(tmp_path, {"user": ["a", None]}, group_by="user"))
    lists = carried(tmp_path, {"user": [[1], [2]]}, group_by="user")
    with pytest.raises(UserError, match=r"--inputs: column 'user': found list<.*, but --group_by needs a column of"):
        check_top_k(TopK(5, "score", "user"), lists)
    with pytest.raises(UserError, match="writes a column of its own named rank"):
        check_top_k(TopK(5, "score"), carried(tmp_path, {"rank": [1]}, "rank"))


def test_a_restart_of_the_merge_keeps_complete_files_and_removes_incomplete_ones(tmp_path):
    directory = PredictionDirectory(tmp_path / "out")
    directory.begin({}, {})
    units = [Unit(index, Path("input.parquet"), range(0), 2 * index, 2, range(0)) for index in range(2)]
    output = TopKOutput(directory, TopK(1, "score", "user"), units)
    for unit, scores in zip(units, ([0.5, 0.25], [0.75, 0.125]), strict=True):
        assert not output.is_finished(unit)
        output.write(UnitResult(unit, pa.table({"user": ["a", "b"], "score": scores}), {}))
        assert output.is_finished(unit)
    for _ in range(2):
        output.merge(ALONE)
        assert [path.name for path in directory.top_k.iterdir()] == ["part-00000.parquet"]
        assert output.results() == {"rows": 2, "files": 1}
        (directory.top_k / ".part-00000.parquet.0badcafe").write_bytes(b"PAR1")
    merged = directory.top_k / "part-00000.parquet"
    assert pq.read_table(merged).to_pylist() == [
        {"user": "a", "rank": 1, "score": 0.75},
        {"user": "b", "rank": 1, "score": 0.25},
    ]
    complete = merged.stat().st_ino
    output.merge(ALONE)
    assert merged.stat().st_ino == complete
