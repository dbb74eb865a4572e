"""The quantisations of a run, one a row of its table."""

from __future__ import annotations

from dataclasses import dataclass

from sparq.schema import key

QUANTIZATION_METHODS = ("smoothquant", "rotation", "omniquant", "affinequant", "flatquant", "round")
QUANTIZATION_ROUNDINGS = ("nearest", "gptq")


@dataclass(frozen=True, kw_only=True)
class QuantizationRow:
    """One row of the table: a post-training quantisation (paper, section 4.1 and E.2).

    Attributes:
        method: "smoothquant", "rotation", "omniquant", "affinequant" or "flatquant", which learn, or "round" for
            nothing besides rounding the weights.
        weight_bits: width of the weights.
        activation_bits: width of the activations.
        alpha: how much difficulty SmoothQuant moves from activations to weights; the methods that learn begin there.
        calibration_sequences: how many sequences of the corpus ranges and GPTQ's inputs are taken from, or learnt on.
        rounding: of the weights: "nearest", or "gptq".
        weight_clip_percent: share of the tail of the weights that is cut off (paper, G.4); not for methods that learn.
        activation_grid: "symmetric" or "asymmetric"; null for what the method takes.
        activation_clip: share of a token's range that the grid of each linear's input covers; not for flatquant.
        state_grids: whether all heads of a "token" share a scale in queries, keys and values, or each "head" has one.
        group_size: input channels of a weight that share a scale; 0 for all, null for what the method takes.
        seed: of the random signs of a rotation, and of those that FlatQuant begins with.
        epochs: passes over the calibration sequences for each block, in methods that learn.
        batch_sequences: sequences in a step of the learning.
        transformation_rate: learning rate of scales, shifts and matrices.
        clipping_rate: learning rate of the learnt clipping.
        stability_factor: weight of what is beside the diagonal of AffineQuant's matrices.
    """

    method: str = key("smoothquant", choices=QUANTIZATION_METHODS)
    weight_bits: int = key(8, minimum=2, maximum=16)
    activation_bits: int = key(8, minimum=2, maximum=16)
    alpha: float = key(0.5, minimum=0, maximum=1)
    calibration_sequences: int = key(256, minimum=1)
    rounding: str = key("nearest", choices=QUANTIZATION_ROUNDINGS)
    weight_clip_percent: float = key(0.0, minimum=0, maximum=99)
    activation_grid: str | None = key(None, choices=("symmetric", "asymmetric"))
    activation_clip: float = key(1.0, above=0, maximum=1)
    state_grids: str = key("token", choices=("token", "head"))
    group_size: int | None = key(None, minimum=0)
    seed: int = key(0, minimum=0)
    epochs: int = key(20, minimum=1)
    batch_sequences: int = key(1, minimum=1)
    transformation_rate: float = key(5e-3, above=0, maximum=1)
    clipping_rate: float = key(1e-2, above=0, maximum=1)
    stability_factor: float = key(0.01, above=0, maximum=1)
