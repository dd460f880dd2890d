import torch

from common.device_copies import DeviceCopies
from tests.toy import toy_batch


def test_on_the_cpu_a_batch_is_where_it_was_made():
    batch = toy_batch(4)
    copied = DeviceCopies(torch.device("cpu")).copy(batch)
    assert copied.features.data_ptr() == batch.features.data_ptr()
