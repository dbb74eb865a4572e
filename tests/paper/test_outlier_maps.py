"""The picture of where a model's outliers are holds the numbers that were measured, on scales that all kinds share."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparq.evaluation.outliers import by_layer, outliers
from sparq.evaluation.sinks import sinks
from sparq.paper.drawing import FILE, short
from sparq.paper.outlier_maps import Measured, _draw, outlier_maps, save_outlier_maps


def found(layers):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": 30}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=layers, initializer_range=0.5))
    made = {}
    for kind, seed in (("text", 0), ("speech", 1)):
        ids = torch.randint(30, (2, 8), generator=torch.Generator().manual_seed(seed))
        made[kind] = Measured(outliers(model, [{"input_ids": ids}]), sinks(model, [{"input_ids": ids}]))
    return made


def test_every_number_of_a_shallow_model_is_there():
    measured = found(2)
    page = outlier_maps(measured)
    for one in measured.values():
        for values in (one.outliers.infinity_norms, one.outliers.kurtoses):
            for value in np.ravel(by_layer(values)):
                assert f">{short(value)}</text>" in page
    for word in ("text", "speech", "Kurtosis", "Attention to the first token", "head"):
        assert f">{word}</text>" in page


def test_panels_show_what_was_measured_on_shared_scales():
    measured = found(14)
    figure = _draw(measured, FILE)
    panels = [axes for axes in figure.axes if axes.images][: 2 * 3]
    assert not any(axes.texts for axes in panels)  # too many layers for numbers
    for row, one in enumerate(measured.values()):
        norms, kurtoses, heads = (axes.images[0].get_array() for axes in panels[3 * row : 3 * row + 3])
        np.testing.assert_allclose(norms, by_layer(one.outliers.infinity_norms))
        np.testing.assert_allclose(kurtoses, by_layer(one.outliers.kurtoses))
        np.testing.assert_allclose(heads, one.sinks.by_head)
    for column in range(3):
        scales = {(axes.images[0].norm.vmin, axes.images[0].norm.vmax) for axes in panels[column::3]}
        assert len(scales) == 1


def test_files(tmp_path):
    save_outlier_maps(found(1), tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
