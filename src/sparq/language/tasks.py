"""The four tasks as data: what is given, what must be produced, and how that is written (VoxtLM's layout).

A fifth task is one more line in :data:`TASKS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sparq.errors import UserError
from sparq.language.vocabulary import Modality, Vocabulary
from sparq.language.writing import Writer

IGNORED = -100  # the label that the cross-entropy of torch passes over

Content = str | Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Task:
    """A condition and a target.

    Attributes:
        name: how recipes and tables call it.
        condition: modality of what is given, or None.
        target: modality of what must be produced.
    """

    name: str
    condition: Modality | None
    target: Modality

    @property
    def generate(self) -> str:
        """The control token behind which the target stands."""
        return "<generatetext>" if self.target == Modality.TEXT else "<generatespeech>"

    def prompt_line(self, writer: Writer, condition: Content | None) -> str:
        """Write everything up to and including the ``<generate…>`` token."""
        if self.condition is None:
            return self.generate
        if condition is None:
            raise UserError(f"task {self.name}: needs {self.condition.name.lower()} as its condition")
        if self.condition == Modality.TEXT:
            return f"<startoftext> {_written(writer, Modality.TEXT, condition)}{self.generate}"
        return f"<startofspeech>{_written(writer, Modality.SPEECH, condition)}{self.generate}"

    def line(self, writer: Writer, *, text: str | None = None, units: Sequence[int] | np.ndarray | None = None) -> str:
        """Write an example, byte for byte as VoxtLM's recipe does.

        Raises:
            UserError: the condition or the target is missing.
        """
        content = {Modality.TEXT: text, Modality.SPEECH: units}
        target = content[self.target]
        if target is None:
            raise UserError(f"task {self.name}: needs {self.target.name.lower()} as its target")
        prompt = self.prompt_line(writer, None if self.condition is None else content[self.condition])
        # VoxtLM puts a space before any text, and before the units of speechLM (though not before those of TTS).
        space = " " if self.target == Modality.TEXT or self.condition is None else ""
        return f"{prompt}{space}{_written(writer, self.target, target)}"


def _written(writer: Writer, modality: Modality, content: Content) -> str:
    if modality == Modality.TEXT:
        if not isinstance(content, str):
            raise UserError(f"expected text, got {type(content).__name__}")
        return writer.write_text(content)
    if isinstance(content, str):
        raise UserError("expected units, got text")
    return writer.write_units(content)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("textlm", None, Modality.TEXT),
        Task("speechlm", None, Modality.SPEECH),
        Task("asr", Modality.SPEECH, Modality.TEXT),
        Task("tts", Modality.TEXT, Modality.SPEECH),
    )
}


@dataclasses.dataclass(frozen=True)
class Example:
    """One training or evaluation sequence: ids [length], and labels [length] (IGNORED on the condition)."""

    input_ids: list[int]
    labels: list[int]


def prompt(task: Task, vocabulary: Vocabulary, condition: Content | None = None) -> list[int]:
    """Ids up to and including the ``<generate…>`` token."""
    return vocabulary.encode(task.prompt_line(vocabulary, condition))


def continuation_prompt(task: Task, vocabulary: Vocabulary, beginning: Content) -> list[int]:
    """Ids of a task without a condition whose target has begun (speech or text continuation)."""
    text, units = (beginning, None) if isinstance(beginning, str) else (None, beginning)
    return vocabulary.encode(task.line(vocabulary, text=text, units=units))


def example(
    task: Task, vocabulary: Vocabulary, *, text: str | None = None, units: Sequence[int] | np.ndarray | None = None
) -> Example:
    """Make a sequence with its loss mask: nothing up to and including ``<generate…>`` counts, the end does."""
    ids = [*vocabulary.encode(task.line(vocabulary, text=text, units=units)), vocabulary.end_id]
    start = ids.index(vocabulary.control(task.generate)) + 1
    return Example(ids, [IGNORED] * start + ids[start:])
