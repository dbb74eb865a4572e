"""How speech is disturbed, so that a model hears more voices, rooms and lines than were recorded."""

from __future__ import annotations

from dataclasses import dataclass

from sparq.errors import UserError
from sparq.schema import key

NOISES = ("white", "pink", "babble", "hum")


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What may happen to an utterance; everything is drawn anew for each, from the seed and its name alone.

    Attributes:
        share: of the utterances that are disturbed at all.
        rates: lowest and highest rate of playing; pitch and formants move too, as if another spoke.
        room: chance of an echo.
        reverberation: shortest and longest time in seconds in which it falls by 60 dB.
        direct: lowest and highest ratio in dB of direct sound to echo.
        noise: chance of noise.
        noises: kinds of noise: "white", "pink", "babble" (of other utterances), "hum" (of the mains).
        snr: lowest and highest ratio in dB of speech to noise.
        telephone: chance of a telephone line (300 to 3400 Hz, 8 kHz, mu-law).
        clipping: chance that the loudest parts are cut off.
        levels: lowest and highest gain in dB.
    """

    share: float = key(0.0, minimum=0, maximum=1)
    rates: tuple[float, ...] = key((1.0, 1.0), minimum=0.5, maximum=2)
    room: float = key(0.0, minimum=0, maximum=1)
    reverberation: tuple[float, ...] = key((0.15, 0.8), minimum=0.02, maximum=5)
    direct: tuple[float, ...] = key((0.0, 10.0), minimum=-30, maximum=60)
    noise: float = key(0.0, minimum=0, maximum=1)
    noises: tuple[str, ...] = key(NOISES, choices=NOISES)
    snr: tuple[float, ...] = key((5.0, 30.0), minimum=-20, maximum=80)
    telephone: float = key(0.0, minimum=0, maximum=1)
    clipping: float = key(0.0, minimum=0, maximum=1)
    levels: tuple[float, ...] = key((0.0, 0.0), minimum=-60, maximum=20)

    def __post_init__(self) -> None:
        for name in ("rates", "reverberation", "direct", "snr", "levels"):
            span = getattr(self, name)
            if len(span) != 2 or span[0] > span[1]:
                raise UserError(f"{name}: {list(span)} (expected the lowest value and the highest)")
        if not self.noises:
            raise UserError("noises: [] (expected at least one kind of noise)")
