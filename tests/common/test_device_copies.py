import torch

from common.device_copies import DeviceCopies
from tests.support.toy import toy_batch


def test_on_the_cpu_a_batch_is_where_it_was_made():
    batch = toy_batch(4)
    assert DeviceCopies(torch.device("cpu")).copy(batch) is batch
