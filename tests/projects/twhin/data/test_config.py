import pytest

from common.errors import ConfigError
from projects.twhin.data.config import NamedRelations


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (None, ["No such file"]),
        (b"", ["line 1 is empty"]),
        (b"a\n\nb\n", ["line 2 is empty"]),
        (b"a\nb\na\n", ["line 3: a is already on line 1", "Names must differ"]),
        (b"\xff\n", ["'utf-8' codec"]),
    ],
)
def test_a_bad_file_of_names_is_a_config_error(tmp_path, content, facts):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        NamedRelations(names_path=str(path), lhs="x", rhs="y").read()
    assert str(caught.value).startswith(f"model.relations.names_path: {path}: ")
    for fact in facts:
        assert fact in str(caught.value)


@pytest.mark.parametrize("content", ["a\nb\x85\u2028\n", "\ufeffa\r\nb\x85\u2028\r\n", "a\nb\x85\u2028"])
def test_only_line_breaks_separate_names(tmp_path, content):
    """Editors on Windows begin a file with a byte order mark, and end lines with CR LF."""
    (tmp_path / "names.txt").write_bytes(content.encode())
    relations = NamedRelations(names_path=str(tmp_path / "names.txt"), lhs="x", rhs="y").read()
    assert [relation.name for relation in relations] == ["a", "b\x85\u2028"]
