import gzip
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.data.parquet import write_schema_json
from projects.home.recap.tools.conversion.conversion import Job, Layout, convert_file, plan_jobs
from projects.home.recap.tools.conversion.plan import features_of_schema
from projects.home.recap.tools.conversion.tfrecords import RecordError
from tests.projects.home.recap.tools.conversion.test_examples import PARTS, SCHEMA, bit_equal, read_by_tensorflow
from tests.projects.home.recap.tools.conversion.test_plan import config, features
from tests.projects.home.recap.tools.conversion.test_tfrecords import WRITTEN_BY_TENSORFLOW, boundaries

LAYOUT = Layout(features_of_schema(str(SCHEMA)), "list")
SMALL, LARGE = "part-00002.tfrecords", "part-00000.gz"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two hours of files."""
    root = tmp_path / "in"
    for hour, name in (("2023/02/01/00", LARGE), ("2023/02/01/01", SMALL)):
        (root / hour).mkdir(parents=True)
        shutil.copy(WRITTEN_BY_TENSORFLOW / name, root / hour)
    return root


def convert(source: Path, output: Path, layout: Layout = LAYOUT) -> list[tuple[int, int]]:
    """Returns the progress that was told."""
    told: list[tuple[int, int]] = []
    convert_file(source, output, layout, lambda read, rows: told.append((read, rows)))
    return told


def outputs_of(jobs: list[Job], out: Path) -> list[str]:
    return [str(job.output.relative_to(out)) for job in jobs]


def column(path: Path, name: str) -> np.ndarray:
    return np.asarray(pq.read_table(path)[name].to_pylist())


# --- Converting a file. ---


@pytest.mark.parametrize("name", PARTS)
def test_the_table_is_what_tensorflow_reads(name, tmp_path):
    told = convert(WRITTEN_BY_TENSORFLOW / name, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    expected = read_by_tensorflow(name)
    assert set(table.column_names) == set(expected)
    for feature, values in expected.items():
        found = table[feature].combine_chunks()
        flat = found.flatten() if values.shape[1] > 1 else found
        assert bit_equal(flat.to_numpy(zero_copy_only=False).reshape(values.shape), values), feature
    assert sum(read for read, _ in told) == (WRITTEN_BY_TENSORFLOW / name).stat().st_size
    assert sum(rows for _, rows in told) == table.num_rows == len(values)


def test_a_file_without_records_becomes_one_without_rows(tmp_path):
    convert(WRITTEN_BY_TENSORFLOW / "part-00004.gz", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 0
    assert len(table.column_names) == 11


def test_no_damage_ends_in_a_wrong_row_or_a_part_of_a_file(tmp_path):
    whole = (WRITTEN_BY_TENSORFLOW / SMALL).read_bytes()
    expected = read_by_tensorflow(SMALL)["home.cont"]
    zipped = (WRITTEN_BY_TENSORFLOW / LARGE).read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:size] for size in range(0, len(whole), 7) if size not in set(boundaries(whole))]
    damaged += [whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :] for k in range(0, len(whole), 7)]
    damaged += [zipped[:k] + rng.bytes(5) + zipped[k + 5 :] for k in rng.integers(10, len(zipped), 40)]
    damaged += [zipped[:k] for k in rng.integers(0, len(zipped), 20)]
    damaged += [gzip.compress(whole)[:-1], whole + b"x", zipped + b"x"]
    source, output = tmp_path / "in", tmp_path / "out" / "x.parquet"
    for data in damaged:
        source.write_bytes(data)
        with pytest.raises(RecordError, match="truncated or corrupt"):
            convert(source, output)
        assert list((tmp_path / "out").glob("*")) == []
        assert list((tmp_path / "out").glob(".*")) == []
    source.write_bytes(whole)
    convert(source, output)
    assert bit_equal(column(output, "home.cont").astype(np.float32), expected)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecordError, match=r"^can't be read: No such file"):
        convert(tmp_path / "gone", tmp_path / "out.parquet")


def test_an_output_that_can_t_be_written(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"out/x\.parquet: can't be written: "):
        convert(WRITTEN_BY_TENSORFLOW / SMALL, tmp_path / "out" / "x.parquet")


def test_what_progress_raises_ends_it_without_an_output(tmp_path):
    def stop(*_: int) -> None:
        raise EOFError

    with pytest.raises(EOFError):
        convert_file(WRITTEN_BY_TENSORFLOW / SMALL, tmp_path / "out.parquet", LAYOUT, stop)
    assert list(tmp_path.iterdir()) == []


def test_vectors_as_binary(tmp_path):
    convert(WRITTEN_BY_TENSORFLOW / LARGE, tmp_path / "out.parquet", LAYOUT._replace(vectors="binary"))
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("home.cont").type == pa.binary(4 * 7)
    stored = b"".join(table["home.cont"].to_pylist())
    assert stored == read_by_tensorflow(LARGE)["home.cont"].tobytes()


@pytest.mark.parametrize("vectors", ["binary", "list"])
@pytest.mark.parametrize("float16", [False, True])
def test_a_data_set_reads_it_in_every_layout(vectors, float16, tmp_path):
    """Cut by a mask; the data set reads what TensorFlow read, rounded where it is stored so."""
    np.save(tmp_path / "mask.npy", np.array([0, 1, 1, 0, 0, 1, 0], dtype=bool))
    slices = {"continuous_feature_mask_path": str(tmp_path / "mask.npy")}
    layout = Layout(list(features(config({"truncate_and_slice": slices}), float16).values()), vectors)
    convert(WRITTEN_BY_TENSORFLOW / LARGE, tmp_path / "out.parquet", layout)
    write_schema_json(tmp_path / "schema.json", [feature.column for feature in layout.features])
    changes = {"inputs": str(tmp_path), "global_batch_size": 120, "lanes": 1}
    as_stored = config(schema_path=str(tmp_path / "schema.json"), renamed_features={}).model_copy(update=changes)
    dataset = RecapDataset.open(as_stored, ["like"], "train_data", evaluation=True)
    [placed] = dataset.reader(0, 1).evaluate()
    expected = read_by_tensorflow(LARGE)
    stored = np.float16 if float16 else np.float32
    for found, theirs in (
        (placed.batch.continuous, expected["home.cont"][:, [1, 2, 5]].astype(stored)),
        (placed.batch.user_embedding, expected["user.twhin"].astype(stored)),
        (placed.batch.binary, expected["home.binary"]),
        (placed.batch.labels, expected["like"]),
    ):
        np.testing.assert_array_equal(np.asarray(found), theirs.astype(np.float32))


def test_what_float16_can_t_hold_is_told(tmp_path):
    layout = Layout(list(features(config(), float16=True).values()))
    told = r"^record 40 .*'home\.cont': 3\.39.*e\+38 found, numbers that float16 holds \(up to 65504\) expected$"
    with pytest.raises(RecordError, match=told):
        convert(WRITTEN_BY_TENSORFLOW / "part-00001.tfrecord.gz", tmp_path / "out.parquet", layout)


# --- Which files become which. ---


def test_a_directory_keeps_its_shape(tree, tmp_path):
    plan = plan_jobs(str(tree), tmp_path / "out", LAYOUT)
    assert outputs_of(plan.jobs, tmp_path / "out") == [
        "2023/02/01/00/part-00000.parquet",
        "2023/02/01/01/part-00002.parquet",
    ]
    assert [job.source.stat().st_size for job in plan.jobs] == [job.size for job in plan.jobs]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pattern", "outputs"),
    [
        ("2023/*/*/00/*.gz", ["02/01/00/part-00000.parquet"]),
        ("2023/02/01/0[01]/*", ["00/part-00000.parquet", "01/part-00002.parquet"]),
        ("**/*.tfrecords", ["2023/02/01/01/part-00002.parquet"]),
        ("2023/02/01/00/part-00000.gz", ["part-00000.parquet"]),
    ],
)
def test_a_pattern_keeps_what_it_leaves_open(pattern, outputs, tree, tmp_path):
    plan = plan_jobs(str(tree / pattern), tmp_path / "out", LAYOUT)
    assert outputs_of(plan.jobs, tmp_path / "out") == outputs


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("a", "a.parquet"),
        ("a.gz", "a.parquet"),
        ("a.tfrecord", "a.parquet"),
        ("a.b.tfrecords.gz", "a.b.parquet"),
        ("part-r-00000.snappy", "part-r-00000.snappy.parquet"),
        ("gz", "gz.parquet"),
    ],
)
def test_names(name, output, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).touch()
    plan = plan_jobs(str(tmp_path / "in"), tmp_path / "out", LAYOUT)
    assert outputs_of(plan.jobs, tmp_path / "out") == [output]


def test_a_relative_path_and_what_is_hidden(tree, monkeypatch):
    (tree / "_SUCCESS").touch()
    (tree / "2023" / ".part.crc").touch()
    (tree / "2023" / "_temporary").mkdir()
    (tree / "2023" / "_temporary" / "part").touch()
    (tree / "2023" / "out").mkdir()
    (tree / "2023" / "out" / "part.parquet").touch()
    monkeypatch.chdir(tree)
    plan = plan_jobs("2023", Path("2023/out"), LAYOUT)
    assert outputs_of(plan.jobs, Path("2023/out")) == ["02/01/00/part-00000.parquet", "02/01/01/part-00002.parquet"]


def test_two_that_would_become_one(tree, tmp_path):
    (tree / "2023/02/01/00/part-00000.tfrecord").touch()
    with pytest.raises(
        UserError, match=r"part-00000\.gz and .*part-00000\.tfrecord would both become .*00000\.parquet"
    ):
        plan_jobs(str(tree), tmp_path / "out", LAYOUT)


@pytest.mark.parametrize("inputs", ["nothing", "nothing/*.gz", ".", "["])
def test_nothing_there(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"--inputs {'.' if inputs == '.' else ''}.*no file matches"):
        plan_jobs(inputs, tmp_path / "out", LAYOUT)


@pytest.mark.parametrize("inputs", ["", "a" * 300, "~no such user/in"])
def test_inputs_that_can_be_none(inputs, tmp_path):
    with pytest.raises(UserError, match=r"nothing given|File name too long|no user of this name"):
        plan_jobs(inputs, tmp_path / "out", LAYOUT)


def test_a_link_that_leads_nowhere_is_told_when_its_turn_comes_and_one_that_leads_up_is_not_followed(tree, tmp_path):
    expected = [job.source for job in plan_jobs(str(tree), tmp_path / "out", LAYOUT).jobs]
    dangling = tree / "z.gz"
    dangling.symlink_to("nowhere")
    (tree / "2023" / "loop").symlink_to("..")
    jobs = plan_jobs(str(tree), tmp_path / "out", LAYOUT).jobs
    assert [job.source for job in jobs] == [*expected, dangling]
    with pytest.raises(RecordError, match="can't be read: No such file"):
        convert(dangling, tmp_path / "out" / "z.parquet")


# --- What is done is not done again. ---


@pytest.fixture
def half_done(tree: Path, tmp_path: Path) -> Path:
    """Where the first of two files is converted."""
    out = tmp_path / "out"
    job = plan_jobs(str(tree), out, LAYOUT).jobs[0]
    convert(job.source, job.output)
    return out


def test_a_finished_file_is_left_alone(tree, half_done):
    plan = plan_jobs(str(tree), half_done, LAYOUT)
    assert [path.name for path in plan.finished] == ["part-00000.parquet"]
    assert outputs_of(plan.jobs, half_done) == ["2023/02/01/01/part-00002.parquet"]


def test_by_whatever_path_it_is_given(tree, half_done, monkeypatch):
    monkeypatch.chdir(tree.parent)
    assert len(plan_jobs("in", Path(half_done.name), LAYOUT).finished) == 1


@pytest.mark.parametrize("same_size", [True, False])
def test_a_source_that_changed_is_converted_again(same_size, tree, half_done):
    source = tree / "2023/02/01/00/part-00000.gz"
    data = source.read_bytes()
    source.write_bytes(data[:-8] + b"\0" * 8 if same_size else data * 2)
    plan = plan_jobs(str(tree), half_done, LAYOUT)
    assert (len(plan.finished), len(plan.jobs)) == (0, 2)


def test_a_record_that_changed_in_the_middle_is_seen(tmp_path):
    """Of a file that isn't compressed the last bytes are a checksum of its last record alone."""
    source, out = tmp_path / "a.tfrecords", tmp_path / "out"
    shutil.copy(WRITTEN_BY_TENSORFLOW / "part-00002.tfrecords", source)
    convert(source, out / "a.parquet")
    assert len(plan_jobs(str(source), out, LAYOUT).finished) == 1
    data = bytearray(source.read_bytes())
    data[20] ^= 1
    source.write_bytes(data)
    assert len(plan_jobs(str(source), out, LAYOUT).jobs) == 1


def test_a_source_that_can_t_be_read_any_more_is_told_when_its_turn_comes(tree, half_done):
    source = tree / "2023/02/01/00/part-00000.gz"
    source.unlink()
    source.mkdir()
    assert plan_jobs(str(tree), half_done, LAYOUT).finished == []


@pytest.mark.parametrize("layout", [LAYOUT._replace(vectors="binary"), LAYOUT._replace(features=LAYOUT.features[1:])])
def test_another_layout_is_a_mistake(layout, tree, half_done):
    with pytest.raises(UserError, match=r"part-00000\.parquet: was made with another schema, .*; give another --out"):
        plan_jobs(str(tree), half_done, layout)


def test_another_source_is_a_mistake(tree, half_done, tmp_path):
    shutil.copytree(tree, tmp_path / "other")
    with pytest.raises(UserError, match=r"was made from .*/in/2023.*, not from .*/other/2023.*; give another --out"):
        plan_jobs(str(tmp_path / "other"), half_done, LAYOUT)


@pytest.mark.parametrize("content", ["text", "parquet"])
def test_a_file_of_somebody_else_is_not_overwritten(content, tree, half_done):
    output = half_done / "2023/02/01/01/part-00002.parquet"
    output.parent.mkdir()
    if content == "text":
        output.write_text("mine")
    else:
        pq.write_table(pa.table({"mine": [1]}), output)
    with pytest.raises(UserError, match=r"part-00002\.parquet: is there, but was not made by this command; "):
        plan_jobs(str(tree), half_done, LAYOUT)
