import pytest

from common.errors import UserError
from common.process.optional_packages import require_packages


def test_missing_packages_are_named_with_the_command_that_installs_them():
    require_packages("this", ["json", "numpy"])
    with pytest.raises(UserError) as caught:
        require_packages("this", ["json", "no_such_module", "nor_this"])
    assert str(caught.value).startswith("this needs no_such_module, nor_this, which")
    assert "pip install -r requirements-serving.txt -c constraints.txt" in str(caught.value)
