"""The names of files in the original say what to type here."""

import shlex
import sys
from collections.abc import Callable

import pytest

from common.errors import UserError
from projects.home.recap.main import main as recap
from projects.twhin.main import main as twhin
from projects.twhin.run import main as original_twhin
from tests.support.root import ROOT


@pytest.mark.parametrize(
    ("program", "arguments", "module"),
    [
        (recap, ["--config_path", "projects/home/recap/config/local_prod.yaml"], "projects.home.recap.main"),
        (twhin, ["--config_path", "projects/twhin/config/local.yaml"], "projects.twhin.main"),
        (original_twhin, [], "projects.twhin.main"),
    ],
)
def test_one_line_says_what_to_type(
    program: Callable[[], int], arguments: list[str], module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(UserError) as caught:
        program()
    message = str(caught.value)
    assert "\n" not in message
    words = shlex.split(message.partition("Type: ")[2])
    assert words[words.index("-m") + 1] == module
    assert (ROOT / words[words.index("--config") + 1]).is_file()
