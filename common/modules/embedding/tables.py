"""Embedding tables: a TorchRec EmbeddingCollection with optimizers fused into its backward pass, and lookups in it.

How tables are spread over ranks is decided in core/models/sharded.py.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from common.modules.embedding.config import EmbeddingBagConfig
from common.optimizers.config import OptimizerConfig

if TYPE_CHECKING:
    from torchrec.modules.embedding_modules import EmbeddingCollection

Lookup = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]
"""Table -> ids [n], int64, to table -> rows [n, embedding_dim], float32. Collective where tables are sharded."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what TorchRec and its kernels tell their developers: pages of the log, and warnings of their own use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def build_tables(configs: Sequence[EmbeddingBagConfig]) -> "EmbeddingCollection":
    """The tables, without memory (on the meta device), each a feature of its own name."""
    with quiet():
        from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
        from torchrec.modules.embedding_modules import EmbeddingCollection
        from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    collection = EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=config.name,
                num_embeddings=config.num_embeddings,
                embedding_dim=config.embedding_dim,
                feature_names=[config.name],
                data_type=DataType.FP16 if config.data_type == "fp16" else DataType.FP32,
            )
            for config in configs
        ],
        device=torch.device("meta"),
    )
    weights = {name.split(".")[1]: weight for name, weight in collection.named_parameters()}
    alike: list[OptimizerConfig] = []
    for config in configs:
        if config.optimizer not in alike:
            alike.append(config.optimizer)
        optimizer, options = _fused_optimizer(config.optimizer)
        # TorchRec updates tables together whose rates begin alike; a rate that tells them apart, until the first step.
        options["lr"] = float(alike.index(config.optimizer))
        apply_optimizer_in_backward(optimizer, [weights[config.name]], options)
    return collection


def _fused_optimizer(config: OptimizerConfig) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    if config.adam is not None:
        return torch.optim.Adam, {"betas": tuple(config.adam.betas), "eps": config.adam.eps}
    if config.adagrad is not None:
        return torch.optim.Adagrad, {"eps": config.adagrad.eps}
    if config.row_wise_adagrad is not None:
        return RowWiseAdagrad, {"eps": config.row_wise_adagrad.eps}
    return torch.optim.SGD, {}


def look_up(
    collection: torch.nn.Module, tables: Sequence[str], ids: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rows of an EmbeddingCollection, sharded or not. Collective where it is: all ranks call it equally often.

    Args:
      collection: with a feature of its own name for each table.
      tables: all tables, in the same order on all ranks.
      ids: by table, [n], int64; a table that is not there is not looked up in. n may differ between ranks.

    Returns:
      by table of `ids`, [n, embedding_dim], float32.
    """
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    device = next(iter(ids.values())).device
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    values = [ids.get(table, nothing) for table in tables]
    inverse: list[torch.Tensor] | None = None
    if device.type == "cpu" and torch.is_grad_enabled():
        # In training once each: frequent rows cost in the exchange and in the update. On a GPU one would have to wait
        # for the number.
        values, inverse = map(list, zip(*(torch.unique(value, return_inverse=True) for value in values), strict=True))
    # All ids of a table are one row's: without a batch dimension nothing has to be padded.
    lengths = torch.tensor([len(value) for value in values], dtype=torch.int32, device=device)
    found = collection(KeyedJaggedTensor(list(tables), torch.cat(values), lengths=lengths, stride=1))
    rows = {table: found[table].values().float() for table in ids}
    if inverse is None:
        return rows
    return {table: rows[table].index_select(0, inverse[tables.index(table)]) for table in ids}
