"""A SpeechLM deployed: the same folder, with a graph for ONNX Runtime, or low-bit codes, in place of the model."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sparq.deployment import DeploymentConfig
from sparq.deployment import deploy as deploy_model
from sparq.deployment.in_torch import quantized_copy
from sparq.language.speech_lm import SpeechLM


def deploy(
    lm: SpeechLM,
    folder: str | Path,
    bits: int = 4,
    activations: str | None = None,
    *,
    engine: str = "onnx",
    complete: bool = True,
) -> SpeechLM:
    """Write a SpeechLM that is really smaller, and faster where its engine is at home, and load it.

    `docs/deployment.md` says when to choose which width.

    Args:
        lm: the SpeechLM; `sparq.deployment.deploy` and `quantize_in_torch` say what can be deployed.
        folder: its name; an older folder of that name is replaced. `sparq.load` reads it.
        bits: width of weights and embeddings: 4, 8, or (onnx alone) 32 for the model as it is.
        activations: what low-bit weights are multiplied by; None for what the engine is fast at.
        engine: "onnx" for a CPU, or "torch" for a GPU; see `sparq.deployment.DeploymentConfig`.
        complete: write every part; otherwise parts that ship with SpARQ are left out and taken from there.

    Returns:
        The deployed SpeechLM, with the prior that the other has.

    Raises:
        UserError: the model cannot be deployed, or not so; the message says why.
    """
    folder, config = Path(folder), DeploymentConfig(bits, activations, engine)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        made = quantized_copy(lm.model, config) if engine == "torch" else deploy_model(lm.model, config, Path(work))
        lm.with_model(made).save(folder, complete=complete)
    return lm.with_model(SpeechLM.load(folder).model)
