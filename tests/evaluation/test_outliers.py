from __future__ import annotations

import numpy as np
import pytest
import torch
from measured_models import MODELS, batches, flows, model_of, sequences

from sparq.errors import UserError
from sparq.evaluation.outliers import PARTS, by_layer, measured_modules, outliers, sequence_statistics
from sparq.quantization import QuantizationConfig, quantize
from sparq.quantization.blocks import architecture


@pytest.fixture(params=list(MODELS))
def kind(request):
    return request.param


def in_numpy(model, names):
    """The definition, one unpadded sequence at a time."""
    model.eval()
    norms, kurtoses = {name: [] for name in names}, {name: [] for name in names}
    for ids in sequences():
        for name, (_, x) in flows(model, names, ids).items():
            norms[name].append(np.abs(x).max())
            kurtoses[name].append(((x - x.mean()) ** 4).mean() / x.std() ** 4)
    return {n: np.mean(v) for n, v in norms.items()}, {n: np.mean(v) for n, v in kurtoses.items()}


@pytest.mark.parametrize(("size", "side"), [(1, "right"), (2, "right"), (4, "right"), (4, "left"), (3, "left")])
def test_is_the_definition_whatever_the_padding(kind, size, side):
    model = model_of(kind)
    report = outliers(model, iter(batches(size, side)))
    assert model.training
    norms, kurtoses = in_numpy(model, measured_modules(model))
    assert report.sequences == 4
    for given, wanted in ((report.infinity_norms, norms), (report.kurtoses, kurtoses)):
        assert list(given) == list(wanted)
        np.testing.assert_allclose(list(given.values()), list(wanted.values()), rtol=1e-4)
    assert report.maximum_infinity_norm == pytest.approx(max(norms.values()), rel=1e-4)
    assert report.average_kurtosis == pytest.approx(np.mean(list(kurtoses.values())), rel=1e-4)


def test_the_modules_are_5n_plus_1(kind):
    names = measured_modules(model_of(kind))
    # A post-norm OPT has no final norm: there is no +1.
    assert len(names) == len(set(names)) == 5 * 3 + (kind != "opt-post-norm")
    if kind == "opt-pre-norm":
        first = "model.decoder.layers.0"
        parts = [first, *(f"{first}.{part}" for part in ("fc2", "final_layer_norm", "self_attn.out_proj"))]
        assert {*parts, f"{first}.self_attn_layer_norm"} == set(names[:5])
        assert names[-1] == "model.decoder.final_layer_norm"
    if kind == "llama":
        parts = ["input_layernorm", "mlp.down_proj", "post_attention_layernorm", "self_attn.o_proj"]
        assert {"model.layers.0", *(f"model.layers.0.{part}" for part in parts)} == set(names[:5])


def test_values_sorted_by_layer(kind):
    report = outliers(model_of(kind), batches(2))
    table = by_layer(report.kurtoses)
    assert [len(row) for row in table] == [len(PARTS)] * 3
    row = architecture(model_of(kind))
    names = ("", row.attention_norm, row.attention_output, row.mlp_norm, row.mlp_output)
    for layer in range(3):
        wanted = [report.kurtoses[f"{row.layers}.{layer}.{name}".rstrip(".")] for name in names]
        assert table[layer] == wanted


@pytest.mark.parametrize(
    ("draw", "kurtosis"),
    [(torch.randn, 3.0), (torch.rand, 1.8), (lambda *s: torch.distributions.Laplace(0.0, 1.0).sample(s), 6.0)],
)
def test_kurtosis_of_known_distributions(draw, kurtosis):
    torch.manual_seed(0)
    _, given = sequence_statistics(5 + 2 * draw(3, 400, 100), torch.ones(3, 400))
    assert given.tolist() == pytest.approx([kurtosis] * 3, rel=0.06)


def test_padding_of_any_size_does_not_count():
    torch.manual_seed(0)
    x, mask = torch.randn(2, 6, 4), torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
    wanted = [sequence_statistics(x[i : i + 1, mask[i].bool()], mask[i : i + 1, mask[i].bool()]) for i in range(2)]
    spoilt = x.masked_fill(~mask.bool()[..., None], float("nan"))
    for output in (spoilt, spoilt.flatten(0, 1)):  # OPT flattens its batch before the MLP
        norm, kurtosis = sequence_statistics(output, mask)
        torch.testing.assert_close(norm, torch.cat([one[0] for one in wanted]))
        torch.testing.assert_close(kurtosis, torch.cat([one[1] for one in wanted]))


def test_a_constant_has_no_outliers():
    norm, kurtosis = sequence_statistics(torch.full((1, 3, 2), -4.0), torch.ones(1, 3))
    assert (norm.item(), kurtosis.item()) == (4, 0)


def test_a_planted_outlier_shows():
    model = model_of("opt-pre-norm")
    before = outliers(model, batches(2))
    with torch.no_grad():
        model.model.decoder.layers[1].fc2.bias[3] = 100
    after = outliers(model, batches(2))
    assert after.infinity_norms["model.decoder.layers.1.fc2"] > 90
    assert after.maximum_infinity_norm > 90 > before.maximum_infinity_norm
    assert after.average_kurtosis > before.average_kurtosis


def test_quantised_models_are_measured_too():
    model = quantize(model_of("llama"), QuantizationConfig("round", 4, 4))
    assert len(outliers(model, batches(2)).kurtoses) == 16


def test_an_empty_set_is_refused_and_the_hooks_are_gone():
    model = model_of("llama")
    with pytest.raises(UserError, match="not one sequence"):
        outliers(model, [])
    assert not any(m._forward_hooks for m in model.modules())
