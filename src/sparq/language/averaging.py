"""The mean of models that branched off one training (Wortsman et al. 2022, "Model soups").

What two of them learnt apart lies on either side of a valley of the loss, at whose bottom their mean is: it is often
better than each of them at what either learnt, and costs nothing when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparq.artifacts import require_match
from sparq.attention.install import CONFIG_KEY
from sparq.errors import UserError
from sparq.language.speech_lm import SpeechLM
from sparq.quantization.blocks import DEPLOYED


@torch.no_grad()
def average(models: Sequence[SpeechLM]) -> SpeechLM:
    """Give the first model the mean of all models' weights; its other parts stay.

    Args:
        models: of one architecture, attention and vocabulary, in full precision; they must have a training in common,
            since means of models that do not are good for nothing.

    Raises:
        UserError: models of different shapes or attention, or one that is quantised or deployed.
        ArtifactMismatchError: models of different vocabularies or units.
    """
    first, *others = models
    for lm in models:
        if any(getattr(lm.model.config, name, None) for name in ("quantization_config", DEPLOYED)):
            raise UserError("the mean of weights that are quantised or deployed (expected models in full precision)")
    for lm in others:
        require_match("the mean (its vocabulary)", first.vocabulary.fingerprint, lm.vocabulary.fingerprint)
        require_match("the mean (its codebook)", first.codebook.meaning, lm.codebook.meaning)
        if _form(lm) != _form(first):
            raise UserError("the mean of models of several architectures or attentions (expected one)")
    states = [lm.model.state_dict() for lm in others]
    done: set[int] = set()
    for name, weight in first.model.state_dict().items():
        if weight.is_floating_point() and weight.data_ptr() not in done:  # tied ones have several names
            done.add(weight.data_ptr())
            weight.copy_(torch.stack([weight, *(state[name] for state in states)]).mean(0))
    first.prior_name = next((lm.prior_name for lm in models if lm.prior_name), None)
    return first


def _form(lm: SpeechLM) -> tuple[object, dict[str, torch.Size]]:
    shapes = {name: weight.shape for name, weight in lm.model.state_dict().items()}
    return getattr(lm.model.config, CONFIG_KEY, None), shapes
