"""SpARQ: one language model that listens, speaks and writes, and stays accurate when adapted cheaply and quantised.

What is named here is loaded when it is first used, so that ``import sparq`` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparq.errors import SparqError, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from sparq.attention import install as install_attention
    from sparq.evaluation import outliers
    from sparq.language.deploy import deploy
    from sparq.language.generation import GenerationOptions
    from sparq.language.prior import TextPrior
    from sparq.language.speech_lm import SpeechLM
    from sparq.quantization import QuantizationConfig, quantize

__all__ = [
    "GenerationOptions",
    "QuantizationConfig",
    "SparqError",
    "SpeechLM",
    "TextPrior",
    "UserError",
    "deploy",
    "install_attention",
    "load",
    "outliers",
    "quantize",
]

_WHERE = {
    "GenerationOptions": ("sparq.language.generation", "GenerationOptions"),
    "QuantizationConfig": ("sparq.quantization", "QuantizationConfig"),
    "SpeechLM": ("sparq.language.speech_lm", "SpeechLM"),
    "TextPrior": ("sparq.language.prior", "TextPrior"),
    "deploy": ("sparq.language.deploy", "deploy"),
    "install_attention": ("sparq.attention", "install"),
    "outliers": ("sparq.evaluation", "outliers"),
    "quantize": ("sparq.quantization", "quantize"),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sparq' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)


def load(folder: str | Path | None = None, device: str = "cpu", prior: str = "auto") -> SpeechLM:
    """Load a SpeechLM.

    Args:
        folder: what ``SpeechLM.save`` or a run wrote, or the name of a model that ships (``speechlm-none``, ``-max``,
            ``-zero``); None for the one of these that is the default.
        device: where it computes, in single precision.
        prior: the language model that knows which transcripts somebody would have said: a folder, a hub name,
            "smollm2-135m", "auto" for the one that it was saved with (all that ship with "smollm2-135m") where that is
            installed, or "none".

    Raises:
        UserError: it is not such a folder, or it is damaged; or the prior cannot be loaded.
    """
    import sparq.quantization  # noqa: F401 (teaches transformers to load models of simulated quantisation)
    from sparq.assets import model_folder
    from sparq.language.prior import find_prior
    from sparq.language.speech_lm import SpeechLM

    lm = SpeechLM.load(model_folder(folder), device)
    lm.prior = find_prior(prior, lm.prior_name, device)
    return lm
