import bz2
import gzip
import io
import lzma
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from common.reader.files import DataError
from projects.twhin.tools.text_blocks import read_blocks
from projects.twhin.tools.text_files import FILE_FORMATS, UNREADABLE, check_text, decompressed

TEXT = b"".join(b"line %d\n" % number for number in range(30_000))


def by_pyarrow(codec: str) -> Callable[[bytes], bytes]:
    def compress(content: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as file:
            file.write(content)
        return bytes(sink.getvalue())

    return compress


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": by_pyarrow("zstd"),
    ".lz4": by_pyarrow("lz4"),
}


def content_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return decompressed(file).read()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_recognized_by_their_content(tmp_path, suffix):
    compress = COMPRESS[suffix]
    (tmp_path / "name").write_bytes(compress(TEXT))
    assert content_of(tmp_path / "name") == TEXT
    # Tools that compress in parallel write several streams, one after the other.
    (tmp_path / "name").write_bytes(compress(TEXT[:70_000]) + compress(TEXT[70_000:]))
    assert content_of(tmp_path / "name") == TEXT
    assert suffix in FILE_FORMATS


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("rest", [b"garbage", b"\x00garbage", b"damaged stream"])
def test_what_follows_a_stream_and_is_none_is_never_ignored(tmp_path, suffix, rest):
    if rest == b"damaged stream":
        rest = COMPRESS[suffix](TEXT)
        rest = bytes([rest[0] ^ 1]) + rest[1:]
    (tmp_path / "name").write_bytes(COMPRESS[suffix](TEXT) + rest)
    with pytest.raises(UNREADABLE):
        content_of(tmp_path / "name")


def test_zeros_between_the_streams_of_an_xz_file_are_padding(tmp_path):
    stream = lzma.compress(TEXT)
    (tmp_path / "name").write_bytes(stream + bytes(8) + stream + bytes(4))
    assert content_of(tmp_path / "name") == 2 * TEXT


def test_plain_text_is_plain_whatever_its_name(tmp_path):
    for content in (TEXT, b"", b"B", b"PK"):
        (tmp_path / "x.gz").write_bytes(content)
        assert content_of(tmp_path / "x.gz") == content


def test_the_only_file_of_a_zip_archive_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "zipped", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", "")
        archive.writestr("folder/a.tsv", TEXT)
        archive.writestr("__MACOSX/folder/._a.tsv", "?")
    assert content_of(tmp_path / "zipped") == TEXT


@pytest.mark.parametrize(("names", "facts"), [(["a", "b"], ["2 files", ": a, b"]), ([], ["0 files"])])
def test_a_zip_archive_of_several_files_or_none_is_an_error(tmp_path, names, facts):
    with zipfile.ZipFile(tmp_path / "zipped", "w") as archive:
        for name in names:
            archive.writestr(name, "1")
    with pytest.raises(DataError) as caught:
        content_of(tmp_path / "zipped")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'zipped'}: ")
    assert [fact for fact in [*facts, "expected 1"] if fact not in message] == []


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: whole[:50] + b"\xff" * 500])
def test_a_damaged_file_is_never_read_as_a_shorter_one(tmp_path, suffix, damage):
    (tmp_path / "x").write_bytes(damage(COMPRESS[suffix](TEXT)))
    with pytest.raises(UNREADABLE):
        content_of(tmp_path / "x")


def test_a_pipe_can_be_read(tmp_path):
    """A shell's <(command) is a pipe."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[gzip.compress(TEXT)], daemon=True)
    writer.start()
    assert b"".join(block.lines for block in read_blocks(tmp_path / "pipe")) == TEXT
    writer.join(30)


def tar_archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.tsv"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (TEXT.decode().encode("utf-16"), "UTF-16"),
        ("\ufeff".encode("utf-16-be") + TEXT.decode().encode("utf-16-be"), "UTF-16"),
        (tar_archive(), "tar archive"),
        (gzip.compress(TEXT), "compressed twice"),
        (COMPRESS[".zst"](TEXT), "compressed twice"),
        (b"PAR1" + bytes(100), "Parquet"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "7z archive"),
        (b"Rar!\x1a\x07\x01\0", "RAR archive"),
        (b"\x1f\x9d\x90", "(.Z)"),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])
def test_content_that_is_not_text_is_named(tmp_path, content, kind, compress):
    if compress is bytes and kind == "compressed twice":
        compress = bz2.compress
    (tmp_path / "x").write_bytes(compress(content))
    with pytest.raises(DataError) as caught:
        list(read_blocks(tmp_path / "x"))
    assert str(caught.value).startswith(f"{tmp_path / 'x'}: this file is ")
    assert kind in str(caught.value)


def test_text_is_text():
    for content in (b"", TEXT, "\ufeffé\t日".encode(), b"BZ\tPK\tRar", b"x" * 257 + b"ustr"):
        check_text(Path("x"), content)
