from __future__ import annotations

import pytest
import torch
from torch import nn

from sparq.adaptation.muon import Muon, orthogonal

SHAPES = [(6, 6), (6, 6), (12, 6), (6, 20), (1, 8)]


def matrices(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_steps_are_those_of_pytorch():
    """PyTorch iterates in bfloat16, so that they agree to two digits."""
    ours, theirs = matrices(), matrices()
    mine = Muon(ours, lr=0.01, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        for parameters in (ours, theirs):
            for parameter, gradient in zip(parameters, matrices(10 + step), strict=True):
                parameter.grad = gradient.detach().clone()
        mine.step()
        other.step()
    for one, two, start in zip(ours, theirs, matrices(), strict=True):
        moved = (two - start).norm()
        assert moved > 0.01
        assert (one - two).norm() < 0.02 * moved
    assert mine.state_dict()["state"][0].keys() == other.state_dict()["state"][0].keys()


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8)])
def test_what_comes_out_is_nearly_the_nearest_orthogonal_matrix(shape):
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    assert found.dtype == torch.float64
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.3
    assert values.max() < 1.3
    turned = left.mT @ found @ right.mT  # diagonal, if the directions are the matrix's own
    torch.testing.assert_close(turned, torch.diag_embed(torch.diagonal(turned, dim1=1, dim2=2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(orthogonal(matrix[:1]), found[:1])
    torch.testing.assert_close(orthogonal(1e3 * matrix), found, atol=1e-5, rtol=1e-5)


def test_parameters_without_a_gradient_stay_and_vectors_are_refused():
    parameters = matrices()
    parameters[0].grad = torch.ones(6, 6)
    before = [parameter.detach().clone() for parameter in parameters]
    loss = Muon(parameters, lr=0.1).step(lambda: 3.0)
    assert loss == 3.0
    assert [torch.equal(now, then) for now, then in zip(parameters, before, strict=True)] == [False] + [True] * 4
    with pytest.raises(ValueError, match=r"not for \[3\]"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
