"""The fused form against the plain definitions: values and gradients, in float64 unless said otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.attention import FUSED_SINKS, attention, fused, fused_attention
from sparq.attention.fused import row_argmax

SINKS_WITH_DETACH = [(sink, False) for sink in FUSED_SINKS] + [("max", True), ("mean", True)]


def tensors(batch: int, heads: int, kv_heads: int, q_length: int, k_length: int, width: int, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, spread: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator) * spread

    return {
        "query": draw(batch, heads, q_length, width, spread=2.0),
        "key": draw(batch, kv_heads, k_length, width),
        "value": draw(batch, kv_heads, k_length, width),
        "learned": draw(heads),
        "side": draw(batch, heads, q_length, width),
    }


def both(given_tensors: dict, sink: str, *, fused_dtype: torch.dtype = torch.float64, **how: object) -> None:
    """Compare outputs and all gradients of the two forms."""
    results = []
    for form in (lambda *a, **k: attention(*a, **k)[0], fused_attention):
        leaves = {
            name: given_tensors[name].to(fused_dtype).clone().requires_grad_()
            for name in ("query", "key", "value", "learned")
        }
        output = form(leaves["query"], leaves["key"], leaves["value"], sink, learned=leaves["learned"], **how)
        output.backward(given_tensors["side"].to(fused_dtype))
        gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
        assert len(gradients) == 3 + (sink == "learned")
        results.append((output.detach(), gradients))
        with torch.no_grad():  # the largest score is found in another way then
            still = form(leaves["query"], leaves["key"], leaves["value"], sink, learned=leaves["learned"], **how)
        torch.testing.assert_close(still, output.detach(), rtol=0, atol=1e-12 if fused_dtype == torch.float64 else 1e-5)
    (plain, plain_gradients), (quick, quick_gradients) = results
    exact = fused_dtype == torch.float64
    torch.testing.assert_close(quick, plain, rtol=0, atol=1e-12 if exact else 1e-5)
    for quick_gradient, plain_gradient in zip(quick_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(quick_gradient, plain_gradient, rtol=0, atol=1e-11 if exact else 1e-4)


def masks(batch: int, heads: int, q_length: int, k_length: int) -> dict[str, torch.Tensor | None]:
    """Left padding as transformers gives it (with rows that see nothing), numbers, and numbers per head."""
    generator = torch.Generator().manual_seed(7)
    causal = torch.ones(q_length, k_length, dtype=torch.bool).tril(k_length - q_length)
    padding = torch.arange(k_length) >= torch.arange(batch)[:, None] * 2
    boolean = (causal & padding[:, None]).view(batch, 1, q_length, k_length)
    fill = torch.finfo(torch.float64).min
    numbers = torch.zeros(boolean.shape, dtype=torch.float64).masked_fill(~boolean, fill)
    bias = torch.randn(1, heads, q_length, k_length, dtype=torch.float64, generator=generator)
    return {"boolean": boolean, "numbers": numbers, "bias": bias + numbers, "none": None}


@pytest.mark.parametrize(("sink", "detach"), SINKS_WITH_DETACH)
@pytest.mark.parametrize("mask", ["boolean", "numbers", "bias", "none"])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
def test_equals_plain_with_every_mask(sink: str, detach: bool, mask: str, kv_heads: int) -> None:
    given_mask = masks(3, 6, 7, 7)[mask]
    both(tensors(3, 6, kv_heads, 7, 7, 8), sink, mask=given_mask, causal=mask == "none", detach=detach)


@pytest.mark.parametrize("sink", FUSED_SINKS)
@pytest.mark.parametrize("mask", ["boolean", "none"])
@pytest.mark.parametrize("q_length", [1, 4])
def test_equals_plain_behind_a_cache(sink: str, mask: str, q_length: int) -> None:
    both(tensors(2, 4, 2, q_length, 9, 8), sink, mask=masks(2, 4, q_length, 9)[mask])


@pytest.mark.parametrize("sink", FUSED_SINKS)
def test_mask_and_causal_together(sink: str) -> None:
    seen = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    seen[..., 2] = False
    both(tensors(2, 2, 2, 6, 6, 8), sink, mask=seen, causal=True)


@pytest.mark.parametrize("sink", FUSED_SINKS)
def test_mask_of_keys_alone(sink: str) -> None:
    seen = torch.tensor([True, True, False, True, False, True]).expand(2, 1, 1, 6)
    both(tensors(2, 4, 2, 3, 6, 8), sink, mask=seen)


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    length=st.integers(1, 150),
    width=st.sampled_from([1, 3, 8, 64]),
    scale=st.sampled_from([None, 1.0, 0.3]),
    sink=st.sampled_from(SINKS_WITH_DETACH),
    seed=st.integers(0, 99),
)
def test_equals_plain_over_shapes(
    batch: int, kv_heads: int, group: int, length: int, width: int, scale: float | None, sink: tuple, seed: int
) -> None:
    data = tensors(batch, kv_heads * group, kv_heads, length, length, width, seed)
    data["query"] /= max(1.0, (scale or 0) * math.sqrt(width))
    both(data, sink[0], causal=True, scale=scale, detach=sink[1])


@pytest.mark.parametrize("sink", FUSED_SINKS)
def test_float32_equals_plain(sink: str) -> None:
    both(tensors(2, 3, 3, 70, 70, 16), sink, fused_dtype=torch.float32, causal=True)


@pytest.mark.parametrize("sink", FUSED_SINKS)
def test_gradcheck(sink: str) -> None:
    data = tensors(1, 2, 1, 4, 4, 3)
    inputs = [data[name].requires_grad_() for name in ("query", "key", "value", "learned")]
    assert torch.autograd.gradcheck(
        lambda q, k, v, learned: fused_attention(q, k, v, sink, causal=True, learned=learned), inputs
    )


def test_gradient_through_the_maximum_is_material() -> None:
    data = tensors(1, 2, 2, 16, 16, 8)
    gradients = []
    for detach in (False, True):
        query = data["query"].clone().requires_grad_()
        fused_attention(query, data["key"], data["value"], "max", causal=True, detach=detach).backward(data["side"])
        gradients.append(query.grad)
    assert (gradients[0] - gradients[1]).abs().max() > 0.01


def test_strided_inputs_as_transformers_gives_them() -> None:
    data = tensors(2, 4, 2, 9, 9, 8)
    for name in ("query", "key", "value"):
        data[name] = data[name].transpose(1, 2).contiguous().transpose(1, 2)
    for sink in FUSED_SINKS:
        both(data, sink, causal=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_row_argmax_over_tiles_is_the_argmax(monkeypatch: pytest.MonkeyPatch, causal: bool, masked: bool) -> None:
    monkeypatch.setitem(fused._TILE_SCORES, "cpu", 5 * 2 * 4 * 23)
    data = tensors(2, 4, 2, 23, 23, 8)
    mask = masks(2, 4, 23, 23)["bias"].masked_fill_(masks(2, 4, 23, 23)["numbers"] < 0, -math.inf)
    mask = mask if masked and not causal else None
    key = data["key"].repeat_interleave(2, dim=1)
    scores = data["query"] @ key.mT * 0.3
    if causal:
        scores = scores + torch.full((23, 23), -math.inf).triu(1)
    elif mask is not None:
        scores = scores + mask
    found = row_argmax(data["query"], data["key"], mask, causal=causal, scale=0.3)
    visible = scores.amax(-1) > -math.inf
    assert torch.equal(found[visible], scores.argmax(-1)[visible])


@pytest.mark.parametrize("sink", FUSED_SINKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("peak", [-100.0, 100.0])
@pytest.mark.parametrize("masked", [True, False])
def test_finite_and_right_at_extreme_rows(sink: str, dtype: torch.dtype, peak: float, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    key = (1 + 0.05 * torch.randn(2, 2, 6, 4, generator=generator)).to(dtype)
    query = torch.full((2, 4, 6, 4), peak / 4, dtype=dtype)
    value = torch.randn(2, 2, 6, 4, generator=generator).to(dtype)
    learned = torch.tensor([-90.0, 0.0, 3.0, 90.0], dtype=dtype)
    leaves = [x.requires_grad_() for x in (query, key, value, learned)]
    mask = masks(2, 4, 6, 6)["boolean"] if masked else None
    output = fused_attention(*leaves[:3], sink, mask=mask, causal=not masked, scale=1.0, learned=learned)
    output.float().sum().backward()
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves if leaf.grad is not None)
    exact = [leaf.detach().double() for leaf in leaves]
    wanted, _ = attention(*exact[:3], sink, mask=mask, causal=not masked, scale=1.0, learned=exact[3])
    # Half precision: PyTorch's own kernel rounds its probabilities to the dtype before they meet the values.
    allowed = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(output.double(), wanted, rtol=0, atol=allowed)
    with torch.no_grad():
        still = fused_attention(*leaves[:3], sink, mask=mask, causal=not masked, scale=1.0, learned=learned)
    torch.testing.assert_close(still.double(), wanted, rtol=0, atol=allowed)


@pytest.mark.parametrize("sink", FUSED_SINKS)
def test_autocast_takes_mixed_inputs(sink: str) -> None:
    data = tensors(1, 2, 2, 6, 6, 8)
    query, key, value = data["query"].float(), data["key"].bfloat16(), data["value"].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = fused_attention(query.requires_grad_(), key, value, sink, causal=True, learned=data["learned"])
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert query.grad.dtype == torch.float32
    assert torch.isfinite(query.grad).all()


@pytest.mark.parametrize("sink", ["none", "zero", "max", "mean", "learned"])
def test_falls_back_to_the_definition_where_no_kernel_fits(monkeypatch: pytest.MonkeyPatch, sink: str) -> None:
    monkeypatch.setattr(fused, "choose", lambda _query, _mask: None)
    both(tensors(2, 4, 2, 5, 5, 8), sink, causal=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("sink", "detach"), SINKS_WITH_DETACH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cuda_equals_plain(sink: str, detach: bool, dtype: torch.dtype, masked: bool, kv_heads: int) -> None:
    data = {name: x.cuda().to(dtype) for name, x in tensors(2, 4, kv_heads, 70, 70, 64).items()}
    mask = masks(2, 4, 70, 70)["boolean"].cuda() if masked else None
    allowed = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}[dtype]
    results = []
    for form, precision in ((lambda *a, **k: attention(*a, **k)[0], torch.float64), (fused_attention, dtype)):
        leaves = {name: data[name].to(precision).requires_grad_() for name in ("query", "key", "value", "learned")}
        learned = leaves["learned"]
        output = form(
            leaves["query"], leaves["key"], leaves["value"], sink,
            mask=mask, causal=not masked, learned=learned, detach=detach,
        )  # fmt: skip
        output.backward(data["side"].to(precision))
        results.append([output, *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)])
    for plain, quick in zip(*results, strict=True):
        size = plain.abs().max().item()
        torch.testing.assert_close(quick.double(), plain.double(), rtol=0, atol=allowed * max(1.0, size))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_a_key_that_is_the_largest_of_many_rows(dtype):
    """It is summed in single precision: in half precision most of four thousand small parts would be lost."""
    generator = torch.Generator().manual_seed(0)
    query = torch.rand(1, 4, 1024, 16, generator=generator).to(dtype)
    key = torch.randn(1, 1, 1024, 16, generator=generator).to(dtype)
    key[:, :, 0] = 10.0
    key.requires_grad_()
    fused._row_max(query, key, None, causal=True, scale=0.25).sum().backward()
    wanted = 0.25 * query.double().sum((0, 1, 2))
    torch.testing.assert_close(key.grad[0, 0, 0].double(), wanted, rtol=0.01, atol=0)
    assert not bool(key.grad[0, 0, 1:].any())
