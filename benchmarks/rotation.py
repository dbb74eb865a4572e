"""Why a rotation may harm weights: what rounding them costs with and without it, linear by linear.

    python benchmarks/rotation.py smollm2-135m --text book.txt

For each kind of linear, with activations in full precision: the error of its weight, the error of its output, and the
perplexity when the weights of this kind alone are rounded (symmetric, one scale an output channel). For each norm: by
how much its weight damps what the linears behind it read, and how large the largest channel of the stream is there.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from quantization import plain
from torch import Tensor, nn

from sparq.artifacts import provenance, write_text
from sparq.evaluation.perplexity import perplexity
from sparq.quantization import QuantizationConfig, Quantizer, quantize
from sparq.quantization.blocks import blocks


@contextlib.contextmanager
def hooked(model: Any, names: list[str], hook: Any) -> Iterator[None]:
    """Call ``hook(name, module, input)`` for each of some modules."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, x, _y, name=name: hook(name, module, x[0]))
        for name in names
    ]
    yield
    for handle in handles:
        handle.remove()


def output_errors(model: Any, names: list[str], ids: Tensor, quantizer: Quantizer) -> dict[str, dict[str, float]]:
    """Power of the error of each weight and of each output, as shares of what they are.

    That of the outputs of first tokens, which attention falls back on, stands apart, as a share of the other tokens'.
    """
    found = {}

    def hook(name: str, linear: Any, x: Tensor) -> None:
        weight = linear.weight
        error = quantizer(weight) - weight
        x = linear.transformed(x) if hasattr(linear, "transformed") else x
        wrong, right = ((x @ one.T).square().sum(-1) for one in (error, weight))
        found[name] = {
            "weight_error": float(error.square().sum() / weight.square().sum()),
            "output_error": float(wrong[:, 1:].sum() / right[:, 1:].sum()),
            "first_token_error": float(wrong[:, 0].mean() / right[:, 1:].mean()),
        }

    with hooked(model, names, hook), torch.no_grad():
        model(input_ids=ids)
    return found


def damping(model: Any, names: list[str], ids: Tensor) -> dict[str, dict[str, float]]:
    """How much more power meets the weights once the norm's weight is folded into them, and the largest channel."""
    found = {}

    def hook(name: str, norm: Any, x: Tensor) -> None:
        x = nn.functional.rms_norm(x, x.shape[-1:], eps=norm.variance_epsilon)
        bare, damped = norm.weight.square().mean() * x.square().sum(-1), (x * norm.weight).square().sum(-1)
        found[name] = {
            "more_power": float(bare[:, 1:].sum() / damped[:, 1:].sum()),
            "more_power_of_first_tokens": float(bare[:, 0].sum() / damped[:, 0].sum()),
            "largest_channel": float(x[:, 1:].square().mean((0, 1)).max()),
        }

    with hooked(model, names, hook), torch.no_grad():
        model(input_ids=ids)
    return {name: {key: round(value, 3) for key, value in values.items()} for name, values in found.items()}


def rounded(model: Any, names: list[str], quantizer: Quantizer, scored: Any) -> float:
    """Perplexity with some weights rounded; they are put back afterwards."""
    weights = [model.get_submodule(name).weight for name in names]
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.copy_(quantizer(weight))
        reached = perplexity(model, scored).perplexity
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)
    return round(reached, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="of the Llama kind")
    parser.add_argument("--text", default="sparq:recipes/demo.tsv", help="one text in each line")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--calibration", type=int, default=2, help="sequences that the errors are taken from")
    parser.add_argument("--scored", type=int, default=4, help="sequences")
    parser.add_argument("--length", type=int, default=256, help="pieces in a sequence")
    parser.add_argument("--errors-only", action="store_true", help="no perplexity, which takes most of the time")
    parser.add_argument("--output", type=Path, default=Path("results/rotation.json"))
    arguments = parser.parse_args()
    model, calibration, scores = plain(arguments.model, arguments)
    ids, scored, quantizer = calibration[0]["input_ids"], scores["text"], Quantizer(arguments.bits, "channel")
    found = blocks(model)
    norms = damping(model, [siblings.norm_name for block in found for siblings in block.smoothed], ids)
    report: dict[str, Any] = {
        "what": "rounding weights alone, with and without rotation; errors are shares of power, means over blocks",
        "made": provenance(),
        "settings": {name: str(value) for name, value in vars(arguments).items() if name != "output"},
        "norms": norms,
        "full_precision_perplexity": {},
        "kinds": {},
    }
    turned = quantize(copy.deepcopy(model), QuantizationConfig("rotation", 16, 16))
    for name, one in (("plain", model), ("rotated", turned)):
        if not arguments.errors_only:
            report["full_precision_perplexity"][name] = round(perplexity(one, scored).perplexity, 2)
        errors = output_errors(one, [linear for block in found for linear in block.linears], ids, quantizer)
        for at, first in enumerate(found[0].linears):
            ours = [errors[block.linears[at]] for block in found]
            kind = report["kinds"].setdefault(first.rpartition(".")[2], {})
            kind[name] = {key: round(statistics.mean(each[key] for each in ours), 4) for key in ours[0]}
            for key in ("output_error", "first_token_error"):
                kind[name][f"{key}_of_blocks"] = [round(each[key], 4) for each in ours]
            if arguments.errors_only:
                continue
            kind[name]["perplexity"] = rounded(one, [block.linears[at] for block in found], quantizer, scored)
            print(f"{name:<9}{first.rpartition('.')[2]:<11}{kind[name]}", flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
