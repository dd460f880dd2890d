import torch
from torch import nn

from core.models.dense import DenseModel, as_distributed
from tests.support.toy import ALONE, ToyModel, dense, toy_batch


def test_a_world_of_one_needs_no_wrapper_and_no_process_group() -> None:
    module = ToyModel(batch_norm=True)
    model = dense(module)
    model.replicate()
    assert model.module is module
    model.share_buffers()
    with model.no_sync():
        loss, _ = model(toy_batch(8))
    assert torch.equal(loss, module(toy_batch(8))[0])
    assert not torch.distributed.is_initialized()


def test_a_module_is_wrapped_and_a_distributed_model_stays_the_same() -> None:
    module = ToyModel()
    model = as_distributed(module, ALONE)
    assert isinstance(model, DenseModel)
    assert model.module is module
    assert as_distributed(model, ALONE) is model


def test_an_evaluation_runs_in_inference_mode() -> None:
    model = dense(ToyModel())
    with model.without_gradients():
        assert torch.is_inference_mode_enabled()
        assert not model(toy_batch(8))[0].requires_grad
    assert not torch.is_inference_mode_enabled()


def test_backward_updates_nothing() -> None:
    model = dense(ToyModel())
    assert not model.has_sharded_tables
    assert model.fused_optimizer_states() == {}


def test_only_trainable_values_are_counted() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    assert dense(module).num_parameters == 12 + 4 + 8 + 8
    module[2].requires_grad_(False)
    assert dense(module).num_parameters == 12 + 4 + 8
