"""The teachers by name: voices that read text aloud, so that text alone becomes a speech corpus.

How well a judge understands each, how fast it is and under which licence it comes is in docs/voices.md.
"""

from __future__ import annotations

from collections.abc import Callable

from sparq.errors import UserError
from sparq.speech.hibari import Hibari
from sparq.speech.kokoro import SPEAKERS, Kokoro
from sparq.speech.programs import PROGRAMS, Piper, ProgramVoice
from sparq.speech.voice import Voice

_VOICES: dict[str, Callable[[str], Voice]] = {
    "hibari": Hibari,
    "piper-joe": Piper,
    **dict.fromkeys(PROGRAMS, ProgramVoice),
    **{f"kokoro-{speaker}": Kokoro for speaker in SPEAKERS},
}
GROUPS = {
    "kokoro": tuple(f"kokoro-{speaker}" for speaker in SPEAKERS),
    "flite": tuple(name for name in PROGRAMS if name.startswith("flite-")),
}
"""Names that stand for several voices."""


def voice_names() -> tuple[str, ...]:
    """Return the name of every voice that :func:`load_voice` knows."""
    return tuple(_VOICES)


def members(name: str) -> tuple[str, ...]:
    """Return the voices that a name stands for, which may be itself alone.

    Raises:
        UserError: no such voice.
    """
    if name in GROUPS:
        return GROUPS[name]
    if name not in _VOICES and not name.startswith("piper:"):
        raise UserError(f"{name}: no such voice; there are {', '.join([*GROUPS, *_VOICES])}, and piper:FILE.onnx")
    return (name,)


def load_voice(name: str = "hibari") -> Voice:
    """Load a voice by name.

    Args:
        name: one of :func:`voice_names`, or "piper:" and the .onnx file of a Piper voice (``#3`` behind it is a
            speaker in it).

    Raises:
        UserError: no such voice, or something is not installed (the line says which command installs it).
    """
    if members(name) != (name,):
        raise UserError(f"{name}: stands for several voices; name one: {', '.join(members(name))}")
    return _VOICES.get(name, Piper)(name)
