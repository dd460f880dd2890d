"""Transforms embeddings with the operators of relations. Each relation has its own parameter.

The operators are those of PyTorch-BigGraph (arXiv 1903.12287, section 3): x + r, x * r, W x, and a complex product.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from projects.twhin.data.config import Operator


def identity_init(operator: Operator, dim: int) -> torch.Tensor | None:
    """Return the float32 parameter that makes an operator the identity, or None if the operator has no parameter.

    The shape is [dim, dim] for linear, otherwise [dim]. complex_diagonal stores real parts first, then imaginary parts.
    """
    match operator:
        case "identity":
            return None
        case "translation":
            return torch.zeros(dim)
        case "diagonal":
            return torch.ones(dim)
        case "linear":
            return torch.eye(dim)
        case "complex_diagonal":
            return torch.cat([torch.ones(dim // 2), torch.zeros(dim // 2)])


def complex_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply complex vectors elementwise, as ComplEx does (arXiv 1606.06357).

    Args:
      a, b: [n, dim]. The first half of each row holds real parts, the second half imaginary parts.
    """
    (a_real, a_imaginary), (b_real, b_imaginary) = a.chunk(2, dim=1), b.chunk(2, dim=1)
    real = a_real * b_real - a_imaginary * b_imaginary
    imaginary = a_real * b_imaginary + a_imaginary * b_real
    return torch.cat([real, imaginary], dim=1)


_ELEMENTWISE: dict[Operator, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "translation": torch.add,
    "diagonal": torch.mul,
    "complex_diagonal": complex_product,
}


class RelationOperator(nn.Module):
    """An operator with the parameters of all relations that use it.

    Attributes:
      operator: name of the operator.
      weight: parameters, one row per relation: [n, ...].
      relations: id of the relation that each row of `weight` belongs to: [n], int64.
    """

    def __init__(self, operator: Operator, dim: int, relations: Sequence[int], num_relations: int) -> None:
        """Initialize the operator as the identity.

        Args:
          operator: any operator except identity.
          dim: dimension of the embeddings.
          relations: ids of the relations that use this operator.
          num_relations: number of relations of the model.
        """
        super().__init__()
        initial = identity_init(operator, dim)
        assert initial is not None, "identity has no parameter"
        self.operator: Operator = operator
        self._position = {relation: position for position, relation in enumerate(relations)}
        self.weight = nn.Parameter(torch.stack([initial] * len(relations)))
        positions = torch.zeros(num_relations, dtype=torch.int64)
        positions[list(relations)] = torch.arange(len(relations))
        self.register_buffer("_positions", positions, persistent=False)
        self._positions: torch.Tensor
        self.register_buffer("relations", torch.tensor(relations), persistent=False)
        self.relations: torch.Tensor

    def forward(
        self,
        embeddings: Sequence[torch.Tensor],
        relations: Sequence[torch.Tensor],
        segment_relations: Sequence[Sequence[int]],
    ) -> list[torch.Tensor]:
        """Transform the embeddings of edges, segment by segment.

        `weight` gets a gradient even if there are no edges, because ranks wait for each other's gradients.

        Args:
          embeddings: embeddings of each segment's edges, [edges, dim].
          relations: relation ids of each segment's edges, [edges], int64. For a single segment, [1] stands for the
            relation of all edges.
          segment_relations: relations that belong to each segment. For linear, exactly one.

        Returns:
          Transformed embeddings of each segment, [edges, dim], in the embeddings' dtype, even under autocast.
        """
        if self.operator == "linear":
            # One product per relation. A single unbind gives one gradient tensor instead of one per relation.
            weights = self.weight.unbind(0)
            return [
                (x @ weights[self._position[relation]].T.to(x.dtype)).to(x.dtype)
                for x, (relation,) in zip(embeddings, segment_relations, strict=True)
            ]
        sizes = [len(x) for x in embeddings]
        rows = self.weight.index_select(0, self._positions.index_select(0, concat(relations)))
        return list(torch.split(_ELEMENTWISE[self.operator](concat(embeddings), rows), sizes))


def concat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate tensors along the first dimension. A single tensor is returned without a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
