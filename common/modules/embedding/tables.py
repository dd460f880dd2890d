"""Builds a TorchRec EmbeddingCollection with optimizers fused into its backward pass, and looks rows up in it.

core/models/sharded.py decides how to shard the tables over ranks.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from common.modules.embedding.config import EmbeddingBagConfig
from common.modules.keys import module_key
from common.optimizers.config import OptimizerConfig

if TYPE_CHECKING:
    from torchrec.modules.embedding_modules import EmbeddingCollection

Lookup = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]
"""Maps ids by table ([n], int64) to rows by table ([n, embedding_dim], float32). Collective if tables are sharded."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the log messages and warnings of TorchRec and its kernels, which are meant for their developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def build_tables(configs: Sequence[EmbeddingBagConfig]) -> "EmbeddingCollection":
    """Build the tables on the meta device, which allocates no memory.

    Each table has one feature with the name of the table.
    """
    with quiet():
        from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
        from torchrec.modules.embedding_modules import EmbeddingCollection
        from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    collection = EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=module_key(config.name),
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
    distinct: list[OptimizerConfig] = []
    for config in configs:
        if config.optimizer not in distinct:
            distinct.append(config.optimizer)
        optimizer, options = _fused_optimizer(config.optimizer)
        # TorchRec groups tables that start with the same rate. A distinct rate per optimizer, which the first step
        # replaces, keeps them apart.
        options["lr"] = float(distinct.index(config.optimizer))
        apply_optimizer_in_backward(optimizer, [weights[module_key(config.name)]], options)
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
    """Look up rows of an EmbeddingCollection. Collective if it is sharded: all ranks must make the same calls.

    Args:
      collection: collection that has one feature per table, with the name of the table.
      tables: names of all tables, in the same order on all ranks.
      ids: row ids by table, [n], int64. Tables may be missing, and n may differ between ranks.

    Returns:
      Rows for each table in `ids`, [n, embedding_dim], float32.
    """
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    device = next(iter(ids.values())).device
    no_ids = torch.empty(0, dtype=torch.int64, device=device)
    values = [ids.get(table, no_ids) for table in tables]
    inverse: list[torch.Tensor] | None = None
    if device.type == "cpu" and torch.is_grad_enabled():
        # In training, look up each row once: repeated rows make the exchange and the update slower. On a GPU, this
        # would have to wait for the number of unique ids.
        values, inverse = map(list, zip(*(torch.unique(value, return_inverse=True) for value in values), strict=True))
    # Treat all ids of a table as one example. Without a batch dimension, nothing needs padding.
    lengths = torch.tensor([len(value) for value in values], dtype=torch.int32, device=device)
    features = collection(KeyedJaggedTensor(list(tables), torch.cat(values), lengths=lengths, stride=1))
    rows = {table: features[table].values().float() for table in ids}
    if inverse is None:
        return rows
    return {table: rows[table].index_select(0, inverse[tables.index(table)]) for table in ids}
