"""The vocoder, ready made or trained."""

from __future__ import annotations

from dataclasses import dataclass

from sparq.schema import key


@dataclass(frozen=True, kw_only=True)
class VocoderTrainingConfig:
    """The unit vocoder, ready made or trained on the corpus (paper, E.3).

    Attributes:
        name: a ready vocoder; null trains one.
        preset: "paper" (hop 320, for HuBERT), "paper-384" (the same for Moonshine's hop), or "small" (hop 384), which
            trains on a processor.
        start: a ready vocoder of one voice or of many, to train on from, of this preset and the corpus's codebook; null
            begins anew.
        speaker_encoder: what tells voices apart, for a vocoder that speaks in all voices of the corpus and in those of
            recordings it never heard: "resemblyzer", or a WavLM for x-vectors (folder or hub name); null for one voice.
        balance: how much more often than its share a voice is heard of which there is little: a voice's share is the
            length of its recordings to this power (1: as long as they are, 0: all voices alike).
        steps: optimizer steps; null for what the preset takes.
        warmup_steps: first steps without discriminators; null for what the preset takes.
        batch: segments in a batch; null for what the preset takes.
        seed: of the segments and of new weights.
    """

    name: str | None = None
    preset: str = key("paper-384", choices=("paper", "paper-384", "small"))
    start: str | None = None
    speaker_encoder: str | None = None
    balance: float = key(0.5, minimum=0, maximum=1)
    steps: int | None = key(None, minimum=1)
    warmup_steps: int | None = key(None, minimum=0)
    batch: int | None = key(None, minimum=1)
    seed: int = key(0, minimum=0)
