from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.quantization.hadamard import hadamard, random_signs, rotate

widths = st.one_of(st.integers(1, 200), st.sampled_from([256, 576, 704]))
some = settings(max_examples=40, deadline=None)


def definition(size):
    """K written out: bits for the Hadamard matrix, Fourier's matrix for Hartley's."""
    power = math.gcd(size, 2**30)
    odd = size // power
    signs = [[(-1.0) ** (i & j).bit_count() for j in range(power)] for i in range(power)]
    fourier = np.fft.fft(np.eye(odd))
    return torch.from_numpy(np.kron(np.array(signs), fourier.real - fourier.imag) / math.sqrt(size))


@some
@given(widths)
def test_orthogonal_and_its_own_inverse(size):
    eye = torch.eye(size, dtype=torch.float64)
    k = hadamard(eye)
    torch.testing.assert_close(k @ k.T, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(hadamard(k), eye, rtol=0, atol=1e-12)
    # No channel keeps more than its share: that is what flattens outliers.
    assert float(k.abs().max()) <= math.sqrt(2 / size) + 1e-12


@some
@given(st.integers(1, 200))
def test_equals_its_definition(size):
    torch.testing.assert_close(hadamard(torch.eye(size, dtype=torch.float64)), definition(size), rtol=0, atol=1e-12)


@some
@given(widths, st.integers(0, 2**31))
def test_rotation_keeps_products_and_undoes_itself_in_the_weight(size, seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(3, size, dtype=torch.float64, generator=generator) for _ in range(2))
    signs = random_signs(size, generator)
    assert set(signs.tolist()) <= {-1.0, 1.0}
    torch.testing.assert_close(rotate(x, signs) @ rotate(w, signs).T, x @ w.T, rtol=1e-10, atol=1e-10)


def test_the_gradient_is_the_transform_of_the_gradient():
    x = torch.randn(2, 3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(hadamard, (x,))
    with torch.inference_mode():  # fills the cache of a width that is seen for the first time
        hadamard(torch.ones(11, dtype=torch.float64))
    y = torch.ones(11, dtype=torch.float64, requires_grad=True)
    hadamard(y).sum().backward()
    assert y.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_single(dtype):
    x = torch.randn(4, 704).to(dtype)
    assert torch.equal(hadamard(x), hadamard(x.float()).to(dtype))


def test_signs_keep_what_is_never_negative_from_adding_up():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 512, generator=generator).relu()
    peak = hadamard(x).abs().amax(-1)
    assert bool((rotate(x, random_signs(512, generator)).abs().amax(-1) < 0.5 * peak).all())
