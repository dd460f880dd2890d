"""Checks before the first step that all ranks have the same configuration, data, model and libraries.

Otherwise, ranks with different files would read rows twice, skip rows or wait for each other forever, and ranks with
different learning rates would train different models.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from common.distributed.world import World
from common.errors import UserError
from common.reader.reader import BatchReader
from core.config.yaml_document import shorten
from core.models.shards import is_sharded
from core.run.components import Components, TrainingComponents
from core.run.identity import capped_list

_ADVICE = (
    "Start all processes with the same command, environment variables, configuration, files and library versions. If "
    "files are still being written, wait until they are complete."
)
# A rank that lacks a value has this in its place. No JSON value is equal to it.
_MISSING = object()
_MAX_TEXT = 200
_MAX_RANKS = 8


def check_agreement(world: World, find_facts: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
    """Raise UserError on all ranks unless all ranks have the same facts. Collective.

    Args:
      world: rank of this process, world size and device.
      find_facts: returns JSON objects to compare. A world of one does not call it. The message names a value by its
        path in its object. Of equal lines about several objects, it has one.

    Raises:
      UserError: the message names each value that differs, and which rank has which.
    """
    if world.size == 1:
        return
    facts = world.consensus.on_all_ranks(find_facts)
    text = json.dumps(facts)
    if len(set(world.consensus.gather(hashlib.blake2b(text.encode()).digest()))) == 1:
        return
    by_rank: list[list[Any]] = [json.loads(gathered) for gathered in world.consensus.gather(text)]
    lines = dict.fromkeys(line for objects in zip(*by_rank, strict=True) for line in _differences("", objects))
    raise UserError(f"the {world.size} processes of this run differ:\n  {capped_list(list(lines))}\n{_ADVICE}")


def check_components(components: Components) -> None:
    """Check that all ranks call train() or only_evaluate() with the same components. Collective.

    Args:
      components: components of the run.

    Raises:
      UserError: the message names each difference.
    """
    check_agreement(
        components.world,
        lambda: [
            components.config.model_dump(mode="json"),
            components.identity if isinstance(components, TrainingComponents) else {},
            _described(components) | {"versions": library_versions()},
        ],
    )


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that the order of rows, their values and the results depend on."""
    return {"torch": torch.__version__, "numpy": np.__version__, "pyarrow": pa.__version__}


def _described(components: Components) -> dict[str, Any]:
    """Return what identifies the data, the model and the optimizer of a run, as JSON values."""
    facts: dict[str, Any] = {
        "device": components.world.device.type,
        "evaluation sets": {
            partition: _described_reader(each.reader) for partition, each in components.evaluation_sets.items()
        },
        "model": _described_model(components.model.module),
    }
    if isinstance(components.train_reader, BatchReader):
        facts["training data"] = _described_reader(components.train_reader)
    if isinstance(components, TrainingComponents):
        facts["optimizer"] = [_described_group(group) for group in components.optimizer.param_groups]
        facts["learning rates"] = dict(components.learning_rates.at(1))
        facts["on_fresh_run is given"] = components.on_fresh_run is not None
        facts["extra_metrics is given"] = components.extra_metrics is not None
        facts["overwrite_save_dir"] = components.overwrite_save_dir
    return facts


def _described_reader(reader: BatchReader[Any]) -> dict[str, Any]:
    return {
        "rows": reader.fingerprint,
        "files": dict(reader.table.files),
        "batches per epoch": reader.batches_per_epoch,
        "global batch size": reader.global_batch_size,
        "lanes": reader.lanes,
    }


def _described_model(module: torch.nn.Module) -> dict[str, str]:
    """Return the type and size of each tensor, and whether it is trained. All ranks list every sharded tensor."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {
        name: f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.size())}"
        + (", frozen" if name in frozen and not is_sharded(tensor) else "")
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, torch.Tensor)  # modules may have other state too
    }


def _described_group(group: Mapping[str, Any]) -> dict[str, str]:
    plain = (bool, int, float, str, tuple, list, torch.Tensor)
    return {key: str(value) for key, value in group.items() if key != "params" and isinstance(value, plain)} | {
        "number of parameters": str(len(group["params"]))
    }


def _differences(path: str, values: Sequence[Any]) -> Iterator[str]:
    """Yield a line for each difference between the values of the ranks."""
    if len({_as_text(value) for value in values}) == 1:
        return
    if all(isinstance(value, dict) for value in values):
        keys = list(dict.fromkeys(key for value in values for key in value))
        for key in keys:
            named = f"{path}[{key}]" if "." in key and path else f"{path}.{key}".removeprefix(".")
            yield from _differences(named, [value.get(key, _MISSING) for value in values])
        if all(len(value) == len(keys) for value in values) and len({tuple(value) for value in values}) > 1:
            yield f"{path}: the order of its keys is {_by_rank([', '.join(value) for value in values])}"
    elif all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        for index, items in enumerate(zip(*values, strict=True)):
            yield from _differences(f"{path}[{index}]", items)
    else:
        yield f"{path}: {_by_rank([_as_text(value) for value in values])}"


def _as_text(value: Any) -> str:
    return "missing" if value is _MISSING else json.dumps(value)


def _by_rank(texts: Sequence[str]) -> str:
    """Return which ranks have which text, such as "1 on ranks 0, 2; 2 on rank 1"."""
    ranks: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        ranks.setdefault(text, []).append(rank)
    return "; ".join(f"{shorten(text, _MAX_TEXT)} on {_listed(owners)}" for text, owners in ranks.items())


def _listed(ranks: Sequence[int]) -> str:
    listed = ", ".join(map(str, ranks[:_MAX_RANKS]))
    more = f" and {len(ranks) - _MAX_RANKS} more" if len(ranks) > _MAX_RANKS else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}{more}"
