import torch
from torch import nn

from core.models.dense import num_parameters, parallelize, share_buffers, unwrap
from tests.support.toy import ALONE, ToyModel


def test_a_world_of_one_needs_no_wrapper_and_no_process_group():
    model = ToyModel(batch_norm=True)
    assert parallelize(model, ALONE) is model
    assert unwrap(model) is model
    share_buffers(model)
    assert not torch.distributed.is_initialized()


def test_only_trainable_numbers_are_counted():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    assert num_parameters(model) == 12 + 4 + 8 + 8
    model[2].requires_grad_(False)
    assert num_parameters(model) == 12 + 4 + 8
