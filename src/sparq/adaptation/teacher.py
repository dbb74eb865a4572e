"""What a language model said of text before it was adapted, as the target of textLM.

A model that learns to listen forgets how to write. The words of a corpus say which word came, and not which others
might have; the model before its adaptation says that of the whole vocabulary, and so every piece of text tells where
the adapted one has left it ("Learning without Forgetting", Li & Hoiem 2016; Hinton, Vinyals & Dean 2015).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparq.adaptation.loss import logits_where_labels_count
from sparq.language.tasks import IGNORED
from sparq.language.vocabulary import ExtendedVocabulary


class TextTeacher:
    """A text language model that is asked what comes next in the examples of textLM.

    It is given the text alone, without the control token before it, as it was once trained. The first word, before
    which it was given nothing, and the end, which is not a matter of text alone, stay those of the corpus.

    Args:
        model: as it was before its adaptation, its attention too; it is frozen.
        vocabulary: that of the adapted model, whose first ids are the text model's own.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: ExtendedVocabulary) -> None:
        self._model: Any = model.eval().requires_grad_(requires_grad=False)
        self._words = vocabulary.text_size
        self._end = vocabulary.end_id

    def positions(self, labels: Tensor) -> Tensor:
        """Find what it is asked for: bool [sequences, longest - 1], of ``labels`` without the first column.

        Labels are int64 [sequences, longest]. An example is of textLM if its labels begin with a word, and behind the
        first token.
        """
        text = (labels[:, 1] >= 0) & (labels[:, 1] < self._words)
        asked = text[:, None] & (labels[:, 1:] != IGNORED) & (labels[:, 1:] != self._end)
        asked[:, 0] = False
        return asked

    @torch.no_grad()
    def probabilities(self, labels: Tensor) -> Tensor:
        """Say how likely each word is at these positions: float32 [positions, words]."""
        asked = self.positions(labels)
        rows = asked.any(1)
        given = labels[rows, 1:]
        wanted = given.masked_fill(~asked[rows], IGNORED)
        model = self._model.to(labels.device)
        with logits_where_labels_count(model, wanted):
            logits = model(input_ids=given.clamp(min=0), use_cache=False).logits
        return torch.softmax(logits[:, : self._words].float(), dim=-1)
