import gzip
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import UserError
from common.files.table_writer import TableColumn
from projects.home.recap.data.dataset import RecapDataset
from projects.home.recap.data.parquet import write_schema_json
from projects.home.recap.tools.conversion.columns import features_of_schema
from projects.home.recap.tools.conversion.examples import ExampleFeature
from projects.home.recap.tools.conversion.files import FileConversion, OutputFormat, convert_file, plan_conversion
from projects.home.recap.tools.conversion.tfrecords import RecordError
from tests.projects.home.recap.tools.conversion.test_columns import config, features
from tests.projects.home.recap.tools.conversion.test_examples import PARTS, SCHEMA, bit_equal, read_by_tensorflow
from tests.projects.home.recap.tools.conversion.test_tfrecords import WRITTEN_BY_TENSORFLOW, boundaries

FORMAT = OutputFormat(features_of_schema(str(SCHEMA)), "list")
SMALL, LARGE = "part-00002.tfrecords", "part-00000.gz"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory tree with one file in each of two hours."""
    root = tmp_path / "in"
    for hour, name in (("2023/02/01/00", LARGE), ("2023/02/01/01", SMALL)):
        (root / hour).mkdir(parents=True)
        shutil.copy(WRITTEN_BY_TENSORFLOW / name, root / hour)
    return root


def convert(source: Path, output: Path, output_format: OutputFormat = FORMAT) -> list[tuple[int, int]]:
    """Convert a file and return the reported progress."""
    reported: list[tuple[int, int]] = []
    convert_file(source, output, output_format, lambda read, rows: reported.append((read, rows)))
    return reported


def outputs_of(conversions: list[FileConversion], out: Path) -> list[str]:
    return [str(conversion.output.relative_to(out)) for conversion in conversions]


def column(path: Path, name: str) -> np.ndarray:
    return np.asarray(pq.read_table(path)[name].to_pylist())


# --- Converting a file ---


@pytest.mark.parametrize("name", PARTS)
def test_the_output_equals_what_tensorflow_reads(name, tmp_path):
    reported = convert(WRITTEN_BY_TENSORFLOW / name, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    expected = read_by_tensorflow(name)
    assert set(table.column_names) == set(expected)
    for feature, values in expected.items():
        found = table[feature].combine_chunks()
        flat = found.flatten() if values.shape[1] > 1 else found
        assert bit_equal(flat.to_numpy(zero_copy_only=False).reshape(values.shape), values), feature
    assert sum(read for read, _ in reported) == (WRITTEN_BY_TENSORFLOW / name).stat().st_size
    assert sum(rows for _, rows in reported) == table.num_rows == len(values)


def test_a_file_without_records_is_converted_to_a_file_without_rows(tmp_path):
    convert(WRITTEN_BY_TENSORFLOW / "part-00004.gz", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 0
    assert len(table.column_names) == 11


def test_a_damaged_file_never_leaves_an_output(tmp_path):
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


def test_a_missing_source_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="No such file"):
        convert(tmp_path / "gone", tmp_path / "out.parquet")


def test_an_unwritable_output_is_an_error(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"out/x\.parquet: .*File exists"):
        convert(WRITTEN_BY_TENSORFLOW / SMALL, tmp_path / "out" / "x.parquet")


def test_an_exception_from_progress_ends_the_conversion_without_an_output(tmp_path):
    def stop(*_: int) -> None:
        raise EOFError

    with pytest.raises(EOFError):
        convert_file(WRITTEN_BY_TENSORFLOW / SMALL, tmp_path / "out.parquet", FORMAT, stop)
    assert list(tmp_path.iterdir()) == []


def test_vectors_are_stored_as_binary(tmp_path):
    convert(WRITTEN_BY_TENSORFLOW / LARGE, tmp_path / "out.parquet", FORMAT._replace(vectors="binary"))
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("home.cont").type == pa.binary(4 * 7)
    stored = b"".join(table["home.cont"].to_pylist())
    assert stored == read_by_tensorflow(LARGE)["home.cont"].tobytes()


@pytest.mark.parametrize("vectors", ["binary", "list"])
@pytest.mark.parametrize("float16", [False, True])
def test_a_data_set_reads_every_output_format(vectors, float16, tmp_path):
    """A data set reads the same values as TensorFlow, cut by a mask and rounded to the stored type."""
    np.save(tmp_path / "mask.npy", np.array([0, 1, 1, 0, 0, 1, 0], dtype=bool))
    slices = {"continuous_feature_mask_path": str(tmp_path / "mask.npy")}
    output_format = OutputFormat(list(features(config({"truncate_and_slice": slices}), float16).values()), vectors)
    convert(WRITTEN_BY_TENSORFLOW / LARGE, tmp_path / "out.parquet", output_format)
    write_schema_json(tmp_path / "schema.json", [feature.column for feature in output_format.features])
    changes = {"inputs": str(tmp_path), "global_batch_size": 120, "lanes": 1}
    as_stored = config(schema_path=str(tmp_path / "schema.json"), renamed_features={}).model_copy(update=changes)
    dataset = RecapDataset.open(as_stored, ["like"], "train_data", evaluation=True)
    [positioned] = dataset.reader(0, 1).evaluate()
    expected = read_by_tensorflow(LARGE)
    stored = np.float16 if float16 else np.float32
    for found, theirs in (
        (positioned.batch.continuous, expected["home.cont"][:, [1, 2, 5]].astype(stored)),
        (positioned.batch.user_embedding, expected["user.twhin"].astype(stored)),
        (positioned.batch.binary, expected["home.binary"]),
        (positioned.batch.labels, expected["like"]),
    ):
        np.testing.assert_array_equal(np.asarray(found), theirs.astype(np.float32))


def test_a_value_that_float16_cannot_hold_is_an_error(tmp_path):
    output_format = OutputFormat(list(features(config(), float16=True).values()))
    with pytest.raises(RecordError, match=r"^record 40 .*'home\.cont'.* 3\.39.*e\+38, .*float16.*65504"):
        convert(WRITTEN_BY_TENSORFLOW / "part-00001.tfrecord.gz", tmp_path / "out.parquet", output_format)


# --- Planning ---


def test_outputs_keep_the_directory_structure(tree, tmp_path):
    plan = plan_conversion(str(tree), tmp_path / "out", FORMAT)
    assert outputs_of(plan.conversions, tmp_path / "out") == [
        "2023/02/01/00/part-00000.parquet",
        "2023/02/01/01/part-00002.parquet",
    ]
    assert [one.source.stat().st_size for one in plan.conversions] == [one.size for one in plan.conversions]
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
def test_outputs_keep_the_path_below_the_first_wildcard(pattern, outputs, tree, tmp_path):
    plan = plan_conversion(str(tree / pattern), tmp_path / "out", FORMAT)
    assert outputs_of(plan.conversions, tmp_path / "out") == outputs


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
def test_the_endings_of_record_files_are_dropped(name, output, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).touch()
    plan = plan_conversion(str(tmp_path / "in"), tmp_path / "out", FORMAT)
    assert outputs_of(plan.conversions, tmp_path / "out") == [output]


def test_hidden_files_and_outputs_below_a_relative_path_are_skipped(tree, monkeypatch):
    (tree / "_SUCCESS").touch()
    (tree / "2023" / ".part.crc").touch()
    (tree / "2023" / "_temporary").mkdir()
    (tree / "2023" / "_temporary" / "part").touch()
    (tree / "2023" / "out").mkdir()
    (tree / "2023" / "out" / "part.parquet").touch()
    monkeypatch.chdir(tree)
    plan = plan_conversion("2023", Path("2023/out"), FORMAT)
    assert outputs_of(plan.conversions, Path("2023/out")) == [
        "02/01/00/part-00000.parquet",
        "02/01/01/part-00002.parquet",
    ]


def test_an_output_in_the_place_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "in" / "a.parquet").mkdir(parents=True)
    for name in ("a.gz", "a.parquet/b.gz"):
        shutil.copy(WRITTEN_BY_TENSORFLOW / LARGE, tmp_path / "in" / name)
    with pytest.raises(UserError, match=r"in/a\.gz would be converted to .*/out/a\.parquet, .*folder"):
        plan_conversion(str(tmp_path / "in"), tmp_path / "out", FORMAT)


def test_a_name_that_is_too_long_for_an_output_is_an_error_before_the_conversion(tmp_path):
    (tmp_path / "in").mkdir()
    longest = "x" * (240 - len(".parquet"))
    shutil.copy(WRITTEN_BY_TENSORFLOW / LARGE, tmp_path / "in" / longest)
    [conversion] = plan_conversion(str(tmp_path / "in"), tmp_path / "out", FORMAT).conversions
    convert(conversion.source, conversion.output)
    (tmp_path / "in" / longest).rename(tmp_path / "in" / f"{longest}x")
    with pytest.raises(UserError, match=f"in/{longest}x: the name is too long"):
        plan_conversion(str(tmp_path / "in"), tmp_path / "out", FORMAT)


def test_two_sources_of_one_output_are_an_error(tree, tmp_path):
    (tree / "2023/02/01/00/part-00000.tfrecord").touch()
    with pytest.raises(UserError, match=r"part-00000\.gz .*part-00000\.tfrecord .*part-00000\.parquet"):
        plan_conversion(str(tree), tmp_path / "out", FORMAT)


@pytest.mark.parametrize("inputs", ["nothing", "nothing/*.gz", ".", "["])
def test_inputs_without_files_are_an_error(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"--inputs {'.' if inputs == '.' else ''}.*no file matches"):
        plan_conversion(inputs, tmp_path / "out", FORMAT)


@pytest.mark.parametrize("inputs", ["", "a" * 300, "~no such user/in"])
def test_impossible_inputs_are_an_error(inputs, tmp_path):
    with pytest.raises(UserError, match=r"^--inputs is empty|^--inputs a{300}: .*File name too long|~no such user/in"):
        plan_conversion(inputs, tmp_path / "out", FORMAT)


def test_a_dangling_link_fails_when_it_is_converted_and_a_link_to_a_parent_is_not_followed(tree, tmp_path):
    expected = [conversion.source for conversion in plan_conversion(str(tree), tmp_path / "out", FORMAT).conversions]
    dangling = tree / "z.gz"
    dangling.symlink_to("nowhere")
    (tree / "2023" / "loop").symlink_to("..")
    conversions = plan_conversion(str(tree), tmp_path / "out", FORMAT).conversions
    assert [conversion.source for conversion in conversions] == [*expected, dangling]
    with pytest.raises(RecordError, match="No such file"):
        convert(dangling, tmp_path / "out" / "z.parquet")


# --- Finished files are not converted again ---


@pytest.fixture
def half_done(tree: Path, tmp_path: Path) -> Path:
    """An output directory with the first of two files converted."""
    out = tmp_path / "out"
    first = plan_conversion(str(tree), out, FORMAT).conversions[0]
    convert(first.source, first.output)
    return out


def test_a_finished_file_is_not_planned_again(tree, half_done):
    plan = plan_conversion(str(tree), half_done, FORMAT)
    assert [path.name for path in plan.finished] == ["part-00000.parquet"]
    assert outputs_of(plan.conversions, half_done) == ["2023/02/01/01/part-00002.parquet"]


def test_a_finished_file_is_recognized_by_a_relative_path(tree, half_done, monkeypatch):
    monkeypatch.chdir(tree.parent)
    assert len(plan_conversion("in", Path(half_done.name), FORMAT).finished) == 1


@pytest.mark.parametrize("same_size", [True, False])
def test_a_changed_source_is_converted_again(same_size, tree, half_done):
    source = tree / "2023/02/01/00/part-00000.gz"
    data = source.read_bytes()
    source.write_bytes(data[:-8] + b"\0" * 8 if same_size else data * 2)
    plan = plan_conversion(str(tree), half_done, FORMAT)
    assert (len(plan.finished), len(plan.conversions)) == (0, 2)


def test_a_change_in_the_middle_of_an_uncompressed_file_is_detected(tmp_path):
    """The last bytes of an uncompressed file are a checksum of its last record only."""
    source, out = tmp_path / "a.tfrecords", tmp_path / "out"
    shutil.copy(WRITTEN_BY_TENSORFLOW / "part-00002.tfrecords", source)
    convert(source, out / "a.parquet")
    assert len(plan_conversion(str(source), out, FORMAT).finished) == 1
    data = bytearray(source.read_bytes())
    data[20] ^= 1
    source.write_bytes(data)
    assert len(plan_conversion(str(source), out, FORMAT).conversions) == 1


def test_a_source_that_became_unreadable_is_planned_again(tree, half_done):
    source = tree / "2023/02/01/00/part-00000.gz"
    source.unlink()
    source.mkdir()
    assert plan_conversion(str(tree), half_done, FORMAT).finished == []


@pytest.mark.parametrize("other", [FORMAT._replace(vectors="binary"), FORMAT._replace(features=FORMAT.features[1:])])
def test_outputs_of_another_format_are_an_error(other, tree, half_done):
    with pytest.raises(UserError, match=r"part-00000\.parquet .*schema.*--lists or --float16.*another --out"):
        plan_conversion(str(tree), half_done, other)


def test_the_digest_of_a_format_never_changes():
    """Existing outputs carry the digest. Another digest would make them unusable for a later conversion."""
    features = [
        ExampleFeature("home.cont", "float_list", 7, TableColumn("continuous", "float32", 3), (1, 3, 4)),
        ExampleFeature("like", "int64_list", 1, TableColumn("like", "int8"), largest=1),
    ]
    assert OutputFormat(features).digest == "1423a45f57c23d8aa2e0e67614933747"
    assert OutputFormat([]).digest == "f162da2f14330b2e357ed9ac9e6fd64d"


def test_outputs_of_another_source_are_an_error(tree, half_done, tmp_path):
    shutil.copytree(tree, tmp_path / "other")
    with pytest.raises(UserError, match=r"from .*/in/2023.*, not from .*/other/2023.*another --out"):
        plan_conversion(str(tmp_path / "other"), half_done, FORMAT)


@pytest.mark.parametrize("content", ["text", "parquet"])
def test_a_file_from_elsewhere_is_not_overwritten(content, tree, half_done):
    output = half_done / "2023/02/01/01/part-00002.parquet"
    output.parent.mkdir()
    if content == "text":
        output.write_text("mine")
    else:
        pq.write_table(pa.table({"mine": [1]}), output)
    with pytest.raises(UserError, match=r"part-00002\.parquet .*not written by this command"):
        plan_conversion(str(tree), half_done, FORMAT)
