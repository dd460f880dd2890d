"""Presents a ranker as a function of tensors by name, each of one type, which is what an export is."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from projects.home.recap.data.dataset import layout_widths
from projects.home.recap.data.schema import feature_widths
from projects.home.recap.model.heavy_ranker import HeavyRanker
from projects.home.recap.saved import SavedRanker

Tensors = Mapping[str, torch.Tensor]

Scorer = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
"""A ranker in any format: maps inputs by name to outputs by name."""

EMBEDDING_PREFIX = "embeddings."
"""The configured feature of kind embedding x is the input embeddings.x."""


@dataclasses.dataclass(frozen=True)
class RankerInput:
    """An input of a ranker: [batch, width]."""

    name: str
    dtype: torch.dtype
    width: int


def ranker_inputs(saved: SavedRanker) -> list[RankerInput]:
    """Return the inputs that the outputs of a ranker depend on."""
    ranker, layout = saved.ranker, None if saved.encoder is None else saved.encoder.layout
    widths = feature_widths(saved.features) if layout is None else layout_widths(layout)
    inputs = [RankerInput("continuous", torch.float32, widths.continuous)]
    if "binary" in saved.config.model.featurization_config.feature_names_to_concat:
        inputs.append(RankerInput("binary", torch.float32, widths.binary))
    prefix = "" if layout is None else EMBEDDING_PREFIX
    inputs += [RankerInput(prefix + name, torch.float32, width) for name, width in widths.embeddings.items()]
    if ranker.small_embeddings is not None:
        inputs.append(RankerInput("discrete", torch.int64, widths.discrete))
    if layout is not None and ranker.feature_tables is not None:
        inputs.append(RankerInput("ids", torch.int32, layout.num_ids))
    return [each for each in inputs if each.width]


class FlatRanker(nn.Module):
    """A ranker whose inputs and outputs are tensors by name."""

    def __init__(self, ranker: HeavyRanker) -> None:
        """Wrap a ranker in evaluation mode."""
        super().__init__()
        self.ranker = ranker

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the outputs of the ranker, given the inputs that ranker_inputs() lists."""
        embeddings = {
            name.removeprefix(EMBEDDING_PREFIX): values
            for name, values in inputs.items()
            if name.startswith(EMBEDDING_PREFIX)
        }
        arguments: dict[str, Any] = {
            name: values for name, values in inputs.items() if not name.startswith(EMBEDDING_PREFIX)
        }
        for name in ("continuous", "binary"):  # no features, or none that the model uses
            if name not in arguments:
                first = next(iter(inputs.values()))
                arguments[name] = first.new_zeros((first.shape[0], 0), dtype=torch.float32)
        outputs: dict[str, torch.Tensor] = self.ranker(**arguments, embeddings=embeddings)
        return outputs


def flatten(arguments: Mapping[str, Any], inputs: Sequence[RankerInput]) -> dict[str, torch.Tensor]:
    """Return the arguments of HeavyRanker.forward() as the inputs of a FlatRanker."""
    embeddings = arguments.get("embeddings") or {}
    tensors = dict(arguments) | {EMBEDDING_PREFIX + name: values for name, values in embeddings.items()}
    return {each.name: tensors[each.name].to(each.dtype) for each in inputs}
