"""A SpeechLM deployed: the same folder, with a graph for ONNX Runtime in place of the model."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sparq.deployment import DeploymentConfig
from sparq.deployment import deploy as deploy_model
from sparq.language.speech_lm import SpeechLM


def deploy(
    lm: SpeechLM, folder: str | Path, bits: int = 4, activations: str = "int8", *, complete: bool = True
) -> SpeechLM:
    """Write a SpeechLM that is really smaller and faster on a CPU, and load it.

    `docs/deployment.md` says when to choose which width.

    Args:
        lm: the SpeechLM; see `sparq.deployment.deploy` for what can be deployed.
        folder: its name; an older folder of that name is replaced. `sparq.load` reads it.
        bits: width of weights and embeddings: 4, 8, or 32 for the model as it is.
        activations: "int8" or "float32", what low-bit weights are multiplied by.
        complete: write every part; otherwise parts that ship with SpARQ are left out and taken from there.

    Returns:
        The deployed SpeechLM.

    Raises:
        UserError: the model cannot be deployed, or not so; the message says why.
    """
    folder, config = Path(folder), DeploymentConfig(bits, activations)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        model = deploy_model(lm.model, config, Path(work))
        made = SpeechLM(model, lm.vocabulary, lm.codebook, lm.vocoder, limits=lm.limits)
        made.save(folder, complete=complete)
    return SpeechLM.load(folder)
