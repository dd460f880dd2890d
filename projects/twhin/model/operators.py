"""What relations do to embeddings, with a parameter of each relation's own.

The operators are those of PyTorch-BigGraph (arXiv 1903.12287, section 3): x + r, x * r, W x, and a complex product.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from projects.twhin.data.relations import Operator


def identity_init(operator: Operator, dim: int) -> torch.Tensor | None:
    """The parameter of one relation with which its operator changes nothing, float32; None: it has no parameter.

    translation, diagonal, complex_diagonal (real parts, then imaginary ones): [dim]. linear: [dim, dim].
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
    """Of vectors [n, dim] whose first half is real and whose second half is imaginary, as in ComplEx (arXiv
    1606.06357)."""
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
    """An operator, with the parameters of all relations that have it: row i of `weight` is relations[i]'s."""

    def __init__(self, operator: Operator, dim: int, relations: Sequence[int], num_relations: int) -> None:
        """Args:
        operator: any but identity. It begins as the identity.
        dim: of the embeddings.
        relations: ids of those that have this operator.
        num_relations: of the model.
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
        """[n], int64: whose each row of `weight` is."""

    def forward(
        self,
        embeddings: Sequence[torch.Tensor],
        relations: Sequence[torch.Tensor],
        of_segments: Sequence[Sequence[int]],
    ) -> list[torch.Tensor]:
        """Transforms the embeddings of edges, segment by segment.

        `weight` gets a gradient, if need be zeros, even where there is no edge: ranks wait for each other's.

        Args:
          embeddings: of each segment, [edges, dim].
          relations: of each segment, [edges], ids, int64; of a single segment also [1], that of all edges.
          of_segments: the relations that each segment can have; of linear exactly one.

        Returns:
          of each segment, [edges, dim], of the embeddings' type also under autocast.
        """
        if self.operator == "linear":
            # A product for each relation. One unbind for all: its gradient is one tensor, not one for each relation.
            weights = self.weight.unbind(0)
            return [
                (x @ weights[self._position[relation]].T.to(x.dtype)).to(x.dtype)
                for x, (relation,) in zip(embeddings, of_segments, strict=True)
            ]
        sizes = [len(x) for x in embeddings]
        rows = self.weight.index_select(0, self._positions.index_select(0, concat(relations)))
        return list(torch.split(_ELEMENTWISE[self.operator](concat(embeddings), rows), sizes))


def concat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """torch.cat along the first dimension, without a copy of a single tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
