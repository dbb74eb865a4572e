"""Average performance drop: what adaptation or quantisation costs over the four tasks (paper, Tables 1, 2 and 6)."""

from __future__ import annotations

import dataclasses
import math

from sparq.errors import UserError


@dataclasses.dataclass(frozen=True)
class Scores:
    """The paper's four scores of a model; lower is better in each, and None was not measured.

    Attributes:
        text_perplexity: on textLM examples.
        speech_perplexity: on speechLM examples.
        asr_wer: percent.
        tts_wer: percent.
    """

    text_perplexity: float | None
    speech_perplexity: float | None
    asr_wer: float | None
    tts_wer: float | None


def average_drop(full: Scores, quantised: Scores) -> float:
    """Mean over the four scores of quantised / full − 1, in percent; negative where the model became better.

    Scores that one of the two lacks are passed over.

    The printed drops of Tables 1 and 6 follow from their rows by this, up to rounding, but for OPT-125m with SpARQ at
    W4A4; several of Table 2 and some of Table 9 do not.

    Args:
        full: scores before (unquantised, or fully fine-tuned).
        quantised: scores after.

    Raises:
        UserError: a score of ``full`` is not above zero (a recogniser without errors, say): nothing is relative to it;
            or no score was measured of both.
    """
    ratios = []
    for name, before in dataclasses.asdict(full).items():
        after = getattr(quantised, name)
        if before is None or after is None:
            continue
        if not before > 0:
            raise UserError(f"average drop: {name} is {before} before, so the drop relative to it has no value")
        ratios.append(after / before - 1)
    if not ratios:
        raise UserError("average drop: no score was measured both before and after")
    return 100 * math.fsum(ratios) / len(ratios)
