"""A sentence, said or written: its text, its units, and, where the voice told, when each word was said."""

from __future__ import annotations

import dataclasses

import numpy as np

from sparq.errors import UserError
from sparq.language.tasks import Task
from sparq.language.vocabulary import Modality


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A sentence, said or written.

    Attributes:
        text: the sentence, or empty where there is speech alone.
        units: raw units [frames], or empty where there is text alone.
        starts, ends: first frame of each word of ``text.split()`` and the one after its last, or None.
        tasks: names of the tasks that it is meant for; None for all that it can serve.
        disturbed: whether what the units were made of was disturbed (:mod:`sparq.speech.augmentation`): such speech is
            to be understood, and not to be spoken.
        views: raw units of the other ways in which it was heard (:mod:`sparq.speech.views`); () for none.
    """

    text: str
    units: np.ndarray
    starts: np.ndarray | None = None
    ends: np.ndarray | None = None
    tasks: tuple[str, ...] | None = None
    disturbed: bool = False
    views: tuple[np.ndarray, ...] = ()

    @property
    def words(self) -> int:
        """Number of words."""
        return len(self.text.split())

    def serves(self, task: Task) -> bool:
        """Whether it is meant for a task, and has the text and the speech that this needs and may learn from."""
        if self.disturbed and task.target == Modality.SPEECH:
            return False
        has = {Modality.TEXT: bool(self.text.strip()), Modality.SPEECH: bool(len(self.units))}
        needed = {task.target, *({task.condition} if task.condition is not None else ())}
        return (self.tasks is None or task.name in self.tasks) and all(has[modality] for modality in needed)

    def span(self, first: int, last: int) -> Utterance:
        """Words ``first`` to ``last`` (not included), with the units spoken during them."""
        if self.starts is None or self.ends is None:
            raise UserError(f"{self.text[:40]!r}: has no word times, so it has no spans")
        text = " ".join(self.text.split()[first:last])
        units = self.units[self.starts[first] : self.ends[last - 1]]
        return Utterance(text, units, tasks=self.tasks, disturbed=self.disturbed)
