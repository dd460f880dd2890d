"""A small model, batch, reader and tracker for tests of the parts of the training loop."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from common.batch import Batch
from common.distributed.world import World
from common.optimizers.config import LearningRate
from common.optimizers.learning_rate import ParameterGroupScheduler
from common.reader.column import Column
from common.reader.files import matching_files
from common.reader.parquet import ParquetTable
from common.reader.prefetch import Prefetcher
from common.reader.reader import BatchReader, Columns, PositionedBatch
from common.tracking.measurement import Measurement
from core.autocast import Autocast
from core.config.training import JobConfig, RuntimeConfig, TrainingConfig
from core.loop.step import TrainStep
from core.losses import multi_task_cross_entropy
from core.metrics.evaluation_set import EvaluationSet
from core.metrics.multi_task import MultiTaskMetrics
from core.models.dense import DenseModel, as_distributed
from core.models.interface import DistributedModel
from core.run.components import TrainingComponents

CPU = torch.device("cpu")
ALONE = World(0, 0, 1, CPU)
FEATURES, TASKS = 5, 2


@dataclasses.dataclass(frozen=True)
class ToyBatch(Batch):
    """Rows of examples: features [rows, FEATURES], labels and weights [rows, TASKS]."""

    features: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor

    def rows(self, begin: int, end: int) -> "ToyBatch":
        return ToyBatch(self.features[begin:end], self.labels[begin:end], self.weights[begin:end])

    def parts(self, count: int) -> "list[ToyBatch]":
        size = self.batch_size // count
        return [self.rows(i * size, (i + 1) * size) for i in range(count)]


def toy_batch(rows: int, seed: int = 0) -> ToyBatch:
    """Return a batch with learnable labels and weights far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, FEATURES, generator=generator)
    labels = (features[:, :TASKS] + 0.3 * torch.randn(rows, TASKS, generator=generator) > 0.4).float()
    return ToyBatch(features, labels, torch.rand(rows, TASKS, generator=generator) * 5)


class ToyModel(nn.Module):
    """A network with one hidden layer, equal initial weights in every instance, and the loss of a project's model."""

    def __init__(self, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.norm: nn.BatchNorm1d | nn.Identity = nn.BatchNorm1d(FEATURES) if batch_norm else nn.Identity()
        self.hidden = nn.Linear(FEATURES, 8)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(8, TASKS)

    @property
    def running_mean(self) -> torch.Tensor:
        assert isinstance(self.norm, nn.BatchNorm1d)
        assert self.norm.running_mean is not None
        return self.norm.running_mean

    def forward(self, batch: ToyBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = self.out(self.dropout(torch.tanh(self.hidden(self.norm(batch.features)))))
        outputs = {
            "logits": logits,
            "calibrated_logits": logits.float(),
            "labels": batch.labels,
            "weights": batch.weights,
        }
        pos_weights = torch.ones(TASKS, dtype=batch.labels.dtype, device=batch.labels.device)
        return multi_task_cross_entropy(logits, batch.labels, batch.weights, pos_weights), outputs


def toy_step(
    model: nn.Module | DistributedModel,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    learning_rate: LearningRate | None = None,
    world: World = ALONE,
    amp: torch.dtype | None = None,
    max_grad_norm: float | None = None,
    seed: int = 0,
) -> TrainStep:
    """Return the step of a model, by default with SGD at learning rate 1, so that the parameters show the gradient."""
    distributed = as_distributed(model, world)
    optimizer = optimizer or torch.optim.SGD(distributed.module.parameters(), lr=1.0)
    rates = ParameterGroupScheduler(
        optimizer, [learning_rate or LearningRate(constant=1.0)] * len(optimizer.param_groups)
    )
    autocast = Autocast(world.device, amp)
    return TrainStep(
        distributed, optimizer, rates, world=world, autocast=autocast, max_grad_norm=max_grad_norm, seed=seed
    )


def dense(model: nn.Module, world: World = ALONE) -> DenseModel:
    """Return a model on all ranks of a world, not yet replicated."""
    return DenseModel(model, world)


def replicated(model: nn.Module, world: World, *, deterministic: bool = False) -> DenseModel:
    """Return a model that is ready for training on all ranks of a world. Collective."""
    distributed = DenseModel(model, world, deterministic=deterministic)
    distributed.replicate()
    return distributed


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the gradients by parameter."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def true_gradients(batch: ToyBatch) -> dict[str, torch.Tensor]:
    """Return the gradients of a fresh model's loss on a batch: the definition of the cross-entropy in float64."""
    model = ToyModel().double()
    logits = model.out(torch.tanh(model.hidden(batch.features.double())))
    labels, p = batch.labels.double(), torch.sigmoid(logits)
    losses = -batch.weights.double() * (labels * torch.log(p) + (1 - labels) * torch.log(1 - p))
    torch.autograd.backward(losses.sum() / losses.numel())
    return gradients(model)


def largest_difference(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Return the largest absolute difference between tensors of the same names."""
    assert found.keys() == expected.keys()
    return max((found[name].double() - expected[name].double()).abs().max().item() for name in expected)


def rows_reader(directory: Path, world: World = ALONE) -> BatchReader[ToyBatch]:
    """Return a reader of 200 rows in a Parquet file, with global batches of 16. Create the file if needed."""
    path = directory / "rows.parquet"
    if not path.exists():
        features = np.random.default_rng(0).normal(size=(200, FEATURES)).astype("float32")
        lists = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), FEATURES)
        pq.write_table(pa.table({"features": lists}), path, row_group_size=30)
    table = ParquetTable(matching_files(str(path)), {"features": Column("features", width=FEATURES)})
    return BatchReader(table, _labeled_batch, global_batch_size=16, lanes=4, rank=world.rank, world_size=world.size)


def _labeled_batch(columns: Columns, mask: torch.Tensor) -> ToyBatch:
    labels = (columns["features"][:, :TASKS] > 0).float()
    return ToyBatch(columns["features"], labels, mask[:, None].expand_as(labels).contiguous())


def toy_components(directory: Path, module: ToyModel | None = None, **options: Any) -> TrainingComponents:
    """Return the components of a run of 10 steps, with a checkpoint every 4 and an evaluation with each.

    Args:
      directory: has the data in a file, and the run in `run`.
      module: the model; None creates one with dropout and batch norm.
      **options: further components. Others are keys of the training configuration.
    """
    module = module or ToyModel(dropout=0.3, batch_norm=True)
    optimizer = torch.optim.Adam([{"params": list(module.parameters()), "name": "all"}], fused=True)
    reader = rows_reader(directory)
    names = {field.name for field in dataclasses.fields(TrainingComponents)}
    keys: dict[str, Any] = {"save_dir": str(directory / "run"), "num_train_steps": 10, "checkpoint_every_n": 4}
    keys |= {key: value for key, value in options.items() if key not in names}
    components: dict[str, Any] = {
        "config": JobConfig(training=TrainingConfig(**keys), runtime=RuntimeConfig(seed=3)),
        "model": dense(module),
        "optimizer": optimizer,
        "learning_rates": ParameterGroupScheduler(optimizer, [LearningRate(constant=0.01)]),
        "train_reader": reader,
        "evaluation_sets": {"rows": EvaluationSet(reader, lambda device: MultiTaskMetrics(["a", "b"], device))},
        "world": ALONE,
    }
    return TrainingComponents(**components | {key: value for key, value in options.items() if key in names})


def loop_arguments(components: TrainingComponents) -> tuple[Any, ...]:
    """Return the positional arguments that train() and the debug loop have in common."""
    names = ("config", "model", "optimizer", "learning_rates", "train_reader", "evaluation_sets", "world")
    return tuple(getattr(components, name) for name in names)


class ToyReader:
    """Reads the batches of `source()` ahead in a thread, as the reader of an evaluation set does."""

    def __init__(self, source: Callable[[], Iterable[ToyBatch]], depth: int = 1) -> None:
        self._source = source
        self._depth = depth

    def evaluate(self, *, pin_memory: bool = False) -> Prefetcher[PositionedBatch[ToyBatch]]:
        assert not pin_memory

        def positioned() -> Iterator[PositionedBatch[ToyBatch]]:
            position: Any = None
            for batch in self._source():
                yield PositionedBatch(batch, position)

        return Prefetcher(positioned(), self._depth)


class MemoryTracker:
    """A tracker that keeps its measurements, and may fail after each."""

    def __init__(self, fails: bool = False) -> None:
        self.measurements: list[Measurement] = []
        self.finished = 0
        self._fails = fails

    def log(self, measurement: Measurement) -> None:
        self.measurements.append(measurement)
        if self._fails:
            raise OSError("the disk is full")

    def finish(self) -> None:
        self.finished += 1
