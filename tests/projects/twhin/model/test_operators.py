import numpy as np
import pytest
import torch

from projects.twhin.data.config import Operator
from projects.twhin.model.operators import RelationOperator, identity_init
from tests.support.toy_twhin import OPERATORS, transformed

WITH_PARAMETERS = OPERATORS[1:]


@pytest.mark.parametrize("operator", WITH_PARAMETERS)
def test_an_operator_starts_as_the_identity(operator: Operator):
    module = RelationOperator(operator, 4, [2, 5], 6)
    x = torch.randn(3, 4)
    relations = torch.full((3,), 5)
    torch.testing.assert_close(module([x], [relations], [(5,)])[0], x)
    assert module.weight.shape == ((2, 4, 4) if operator == "linear" else (2, 4))
    assert list(module.state_dict()) == ["weight"]


def test_the_identity_has_no_parameter():
    assert identity_init("identity", 4) is None


@pytest.mark.parametrize("operator", WITH_PARAMETERS)
def test_equals_the_closed_form(operator: Operator):
    """Edges use their own relation's parameter. Segments mix relations in any order."""
    module = RelationOperator(operator, 6, [1, 3, 4], 5).double()
    torch.nn.init.normal_(module.weight)
    segments = [(3,), (1,), (4,)] if operator == "linear" else [(3, 1), (4,)]
    relations = [torch.tensor(np.resize(segment, 4)) for segment in segments]
    x = [torch.randn(4, 6, dtype=torch.float64) for _ in segments]
    results = module(x, relations, segments)
    for segment in range(len(segments)):
        for edge in range(4):
            row = [1, 3, 4].index(int(relations[segment][edge]))
            expected = transformed(operator, x[segment][edge].numpy(), module.weight[row].detach().numpy())
            np.testing.assert_allclose(results[segment][edge].detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("operator", WITH_PARAMETERS)
def test_without_edges_the_gradient_is_zero(operator: Operator):
    module = RelationOperator(operator, 4, [0, 1], 2)
    empty, none = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    results = module([empty, empty], [none, none], [(0,), (1,)])
    assert [result.shape for result in results] == [(0, 4)] * 2
    torch.autograd.backward(torch.cat(results).sum())
    assert module.weight.grad is not None
    assert not module.weight.grad.any()


@pytest.mark.parametrize("operator", WITH_PARAMETERS)
def test_gradients(operator: Operator):
    module = RelationOperator(operator, 4, [0, 1], 2).double()
    torch.nn.init.normal_(module.weight)
    relations = [torch.tensor([0, 0]), torch.tensor([1])]
    x = [torch.randn(len(ids), 4, dtype=torch.float64, requires_grad=True) for ids in relations]

    def transform(weight: torch.Tensor, *x: torch.Tensor) -> torch.Tensor:
        arguments = (list(x), relations, [(0,), (1,)])
        results = torch.func.functional_call(module, {"weight": weight}, arguments)
        return torch.cat(results)

    assert torch.autograd.gradcheck(transform, (module.weight, *x))


@pytest.mark.parametrize("operator", WITH_PARAMETERS)
def test_results_under_autocast_are_float32(operator: Operator):
    module = RelationOperator(operator, 4, [0], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (result,) = module([torch.randn(3, 4)], [torch.zeros(3, dtype=torch.int64)], [(0,)])
    assert result.dtype == torch.float32


@pytest.mark.parametrize("operator", WITH_PARAMETERS)
def test_one_relation_for_all_edges(operator: Operator):
    module = RelationOperator(operator, 4, [0, 1], 2)
    torch.nn.init.normal_(module.weight)
    x = torch.randn(3, 4)
    results = [module([x], [torch.ones(count, dtype=torch.int64)], [(1,)])[0] for count in (1, 3)]
    torch.testing.assert_close(*results)
