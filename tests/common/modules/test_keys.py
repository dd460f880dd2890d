import pytest
from torch import nn

from common.modules.keys import module_key, name_of_key

# Names that an nn.ModuleDict uses for its own attributes, and some that it does not use.
TAKEN = sorted(name for name in dir(nn.ModuleDict()) if "." not in name)
FREE = ("user", "recap/engagement/is_replied", "0", "two words", "ünï", "weight", "Items")


def test_every_name_becomes_a_module_and_is_found_again() -> None:
    modules = nn.ModuleDict({module_key(name): nn.Linear(1, 1) for name in (*TAKEN, *FREE)})
    assert [name_of_key(key) for key in modules] == [*TAKEN, *FREE]
    assert len(list(modules.named_parameters())) == 2 * len([*TAKEN, *FREE])
    assert {"items", "keys", "values", "type", "float", "train", "training", "_modules"} <= {*TAKEN}


@pytest.mark.parametrize("name", FREE)
def test_a_free_name_is_its_own_key(name: str) -> None:
    """Checkpoints contain these keys."""
    assert module_key(name) == name


def test_a_key_has_slashes_for_dots() -> None:
    assert module_key("recap.engagement.is_replied") == "recap/engagement/is_replied"
