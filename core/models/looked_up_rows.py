"""Separates the backward pass of a model from the updates of its sharded tables.

TorchRec's kernels update a table when the backward pass reaches its lookup. Here, the backward pass stops at the rows
that the lookup returned. Their gradients can then be checked on all ranks, together with all others, before update()
continues the pass and thereby updates the tables.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor


class LookedUpRows:
    """Holds the rows that the sharded tables of a model returned in the last forward pass with gradients."""

    def __init__(self, model: nn.Module) -> None:
        """Hook into all sharded collections of a model."""
        from torchrec.distributed.embedding import ShardedEmbeddingCollection

        self._rows: list[torch.Tensor] = []
        self._stand_ins: list[torch.Tensor] = []
        """Leaves with the values of the rows, which the rest of the model uses in their place."""
        for module in model.modules():
            if isinstance(module, ShardedEmbeddingCollection):
                module.register_forward_hook(self._replace)

    def clear(self) -> None:
        """Forget the rows, and thereby their gradients."""
        self._rows.clear()
        self._stand_ins.clear()

    def gradients(self) -> list[torch.Tensor]:
        """Return the gradients that the last backward pass computed for this rank's rows, [n, embedding_dim] each."""
        return [stand_in.grad for stand_in in self._stand_ins if stand_in.grad is not None]

    def update(self) -> None:
        """Update the tables with the gradients of the rows, then forget them. Collective."""
        used = [(row, own) for row, own in zip(self._rows, self._stand_ins, strict=True) if own.grad is not None]
        if used:
            torch.autograd.backward([rows for rows, _ in used], [stand_in.grad for _, stand_in in used])
        self.clear()

    def _replace(self, _module: nn.Module, _inputs: Any, output: Any) -> "Mapping[str, JaggedTensor]":
        from torchrec.distributed.types import LazyAwaitable
        from torchrec.sparse.jagged_tensor import JaggedTensor

        by_feature: Mapping[str, JaggedTensor] = output.wait() if isinstance(output, LazyAwaitable) else output
        if not torch.is_grad_enabled():
            return by_feature
        replaced = {}
        for feature, looked_up in by_feature.items():
            rows = looked_up.values()
            stand_in = rows.detach().requires_grad_()
            self._rows.append(rows)
            self._stand_ins.append(stand_in)
            replaced[feature] = JaggedTensor(
                stand_in, lengths=looked_up.lengths_or_none(), offsets=looked_up.offsets_or_none()
            )
        return replaced
