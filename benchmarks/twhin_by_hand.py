"""Trains the same model and loss with a hand-written loop in plain PyTorch, for benchmarks/twhin.py."""

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.twhin_program import RELATIONS, Shape, draw_edges


def by_hand(shape: Shape, seconds: float, sparse: bool) -> float:
    """Return the speed of the hand-written loop in edges per second.

    The loss is that of the program: all edges share the negatives, and a negative that equals an edge's own entity is
    masked.
    """
    torch.manual_seed(0)
    columns = [torch.from_numpy(column) for column in draw_edges(shape)]
    entities = nn.Embedding(shape.entities, shape.dim, sparse=sparse)
    nn.init.normal_(entities.weight, std=1e-3)
    translations = [nn.Embedding(RELATIONS, shape.dim, sparse=sparse) for _ in range(2)]
    for translation in translations:
        nn.init.zeros_(translation.weight)
    optimizer = torch.optim.Adagrad([entities.weight, *(translation.weight for translation in translations)], lr=0.1)

    def batches() -> Iterator[list[torch.Tensor]]:
        while True:
            order = torch.randperm(shape.edges)
            for start in range(0, shape.edges - shape.batch + 1, shape.batch):
                yield [column[order[start : start + shape.batch]] for column in columns]

    def side_loss(queries: torch.Tensor, own: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        uniform = torch.randint(shape.entities, (shape.uniform,))
        in_batch = torch.randperm(shape.batch)[: shape.in_batch]
        candidates = torch.cat([entities(uniform), own[in_batch]])
        masked = ids[:, None] == torch.cat([uniform, ids[in_batch]])
        negatives = (queries @ candidates.T).masked_fill(masked, -torch.inf)
        scores = torch.cat([(queries * own).sum(1, keepdim=True), negatives], dim=1)
        return F.cross_entropy(scores, torch.zeros(shape.batch, dtype=torch.int64))

    started_at, steps, warm_up = time.perf_counter(), 0, seconds / 5
    for lhs, rel, rhs in batches():
        left, right = entities(lhs), entities(rhs)
        right_loss = side_loss(left + translations[0](rel), right, rhs)
        loss = right_loss + side_loss(right + translations[1](rel), left, lhs)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        steps += 1
        elapsed = time.perf_counter() - started_at
        if warm_up and elapsed >= warm_up:
            started_at, steps, warm_up = time.perf_counter(), 0, 0.0
        elif not warm_up and elapsed >= seconds:
            break
    return steps * shape.batch / elapsed
