"""Layers of codes: what they round, what they multiply, and that nothing is lost on the way into a kernel and back."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from sparq.deployment.low_bit_layers import Int4Linear, Int8Embedding, Int8Linear, TiedOutput, group_size

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def linear(inputs=192, outputs=48, *, bias=True, seed=0):
    torch.manual_seed(seed)
    made = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    made.weight[3] = 0.0  # an output without a range
    made.weight[5] += 2.0  # grids that do not hold 0
    return made


def tokens(inputs=192, seed=1):
    """Of very different size, so that one step for all of them would show."""
    x = torch.randn(2, 5, inputs, generator=torch.Generator().manual_seed(seed))
    return x * torch.logspace(-2, 2, 5)[:, None]


def relative(found, wanted):
    return float((found.double().cpu() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("device", DEVICES)
def test_eight_bits_are_the_product_of_two_rounded_factors(device):
    plain, x = linear(), tokens()
    layer = Int8Linear(plain.weight, plain.bias).to(device)
    steps = plain.weight.abs().amax(1, keepdim=True) / 127
    steps[3] = 1.0
    assert torch.equal(layer.codes.cpu(), (plain.weight / steps).round().to(torch.int8))
    torch.testing.assert_close(layer.steps.cpu(), steps)
    # Each token on a grid of its own, by torchao's definition: 255 steps of twice the largest value.
    of_token = x.double().abs().amax(-1, keepdim=True) / 127.5
    rounded = (x.double() / of_token).round().clamp(-128, 127) * of_token
    wanted = nn.functional.linear(rounded, layer.weight.double().cpu(), plain.bias.double())
    found = layer(x.to(device))
    off = (found.double().cpu() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert off.median() < 1e-5
    assert off.max() < 0.01  # a value in the middle of two steps may go to either
    assert relative(found, plain(x)) > 1e-3  # it does round


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("inputs", [128, 192, 96, 1280])
def test_four_bits_are_the_product_of_bfloat16_and_the_weight_they_stand_for(inputs, device):
    plain, x = linear(inputs), tokens(inputs)
    layer = Int4Linear(plain.weight, plain.bias).to(device)
    wanted = nn.functional.linear(x.bfloat16().double(), layer.weight.double().cpu(), plain.bias.double())
    found = layer(x.to(device))
    assert found.dtype == torch.float32
    assert relative(found, wanted) < 8e-3
    assert relative(layer(x.to(device).bfloat16()), wanted) < 8e-3


@pytest.mark.parametrize(("inputs", "group"), [(256, 128), (192, 64), (96, 32)])
def test_a_weight_is_at_most_half_a_step_off(inputs, group):
    plain = linear(inputs)
    layer = Int4Linear(plain.weight)
    groups = plain.weight.unflatten(1, (-1, group))
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    off = (layer.weight - plain.weight).abs().unflatten(1, (-1, group)).amax(-1)
    # Both ends of a grid are rounded to bfloat16, to 8 bits of the largest value, as the kernels want them.
    assert bool((off <= 0.5 * step + plain.weight.abs().amax() * 2**-8).all())
    assert layer.grids.shape == (48, inputs // group, 2)
    assert layer.codes.shape == (48, inputs // 2)
    assert layer.codes.nbytes + layer.grids.nbytes == plain.weight.numel() // 2 + 4 * plain.weight.numel() // group


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("inputs", [128, 192, 96])
def test_codes_are_read_back_out_of_the_kernel(inputs, device):
    layer = Int4Linear(linear(inputs).weight)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.to(device)
    layer(tokens(inputs).to(device))
    assert layer.codes is None  # they are in one place at a time
    in_use = layer.weight
    after = layer.state_dict()
    assert list(after) == list(before) == ["codes", "grids"]
    for name, tensor in before.items():
        assert torch.equal(after[name].cpu(), tensor)
    assert torch.equal(layer.weight, in_use)
    layer(tokens(inputs).to(device))
    assert torch.equal(layer.to("cpu").codes, before["codes"])


def test_the_first_code_of_a_byte_is_in_its_low_bits():
    weight = (torch.arange(32.0) % 16).expand(16, 32).contiguous()
    assert Int4Linear(weight).codes[0, :3].tolist() == [0x10, 0x32, 0x54]


def test_shapes_that_the_kernels_do_not_take():
    assert group_size(torch.empty(16, 40)) is None
    assert group_size(torch.empty(24, 64)) is None
    assert group_size(torch.empty(32, 64)) == 64


@pytest.mark.parametrize("device", DEVICES)
def test_rows_are_looked_up_and_multiplied_by_the_same_table(device):
    table = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    embeddings = Int8Embedding(table).to(device)
    output = TiedOutput(embeddings)
    ids = torch.tensor([[3, 39], [0, 3]], device=device)
    torch.testing.assert_close(embeddings(ids), embeddings.weight[ids], rtol=0, atol=0)
    assert relative(embeddings(ids), table[ids.cpu()]) < 0.01
    x = tokens(64)
    assert 1e-3 < relative(output(x.to(device)), nn.functional.linear(x, embeddings.weight.cpu())) < 0.01
    assert not output.state_dict()
    assert list(embeddings.state_dict()) == ["codes", "steps"]


def test_what_moves_is_made_anew():
    """A form made for one precision or device would be multiplied by after the layer has left it."""
    layer, x = Int8Linear(linear().weight), tokens()
    layer(x)
    layer.steps = 2 * layer.steps
    layer.to(torch.bfloat16)
    assert relative(layer(x.bfloat16()), nn.functional.linear(x, layer.weight.float())) < 0.02


@pytest.mark.parametrize("value", [0.02, -0.3, 5.0])
def test_a_group_of_equal_weights_is_kept(value):
    plain = linear()
    plain.weight[7] = value
    for kind in (Int4Linear, Int8Linear):
        torch.testing.assert_close(kind(plain.weight).weight[7], plain.weight[7], rtol=5e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_of_eight_bits_count_in_the_steps_that_are_kept(dtype):
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[3] *= 1e-6
    layer = Int8Linear(weight)
    steps = layer.steps.double()
    assert bool((steps > 0).all())
    off = (layer.codes * steps - weight.double()).abs() / steps
    ends = layer.codes.abs() == 127  # the largest value may lie beyond a step that was rounded down
    assert off[~ends].max() <= 0.5
    assert off[ends].max() < 1
