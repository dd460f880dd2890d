import torch

from common.device_copies import DeviceCopies
from tests.support.toy import toy_batch


def test_batch_is_not_copied_on_the_cpu():
    batch = toy_batch(4)
    assert DeviceCopies(torch.device("cpu")).copy(batch) is batch
