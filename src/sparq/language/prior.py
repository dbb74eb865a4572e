"""How likely a text is by another language model: a prior for what was said, from far more text than speech.

A SpeechLM has read few texts, and knows a word that it never met by its sounds alone. A text language model that has
read the web tells which of several transcripts somebody would have said. It need not share the SpeechLM's pieces: whole
texts are compared (n-best rescoring; in :mod:`sparq.language.rescoring` it takes the place of the task textLM).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sparq.assets import installed, language_model
from sparq.errors import UserError
from sparq.language.folder import load_language_model, load_tokenizer
from sparq.language.likelihood import log_likelihoods
from sparq.language.prefix_tree import reads_trees, tree_log_likelihoods
from sparq.language.tasks import IGNORED, Example

_FEW = 6  # words, which may be no sentence


class Prior(Protocol):
    """Whatever says how likely texts are."""

    def log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """Log-likelihood of each text on its own, in nats."""
        ...


class TextPrior:
    """A causal language model and its tokenizer.

    Attributes:
        model: any of transformers, in evaluation mode.
        tokenizer: its own.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Take a model.

        Args:
            model: see the class.
            tokenizer: see the class.

        Raises:
            UserError: the tokenizer has no token that a text may begin behind.
        """
        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if begin is None:
            raise UserError(f"prior: {tokenizer.name_or_path}: its tokenizer has neither a first nor a last token")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._begin = int(begin)

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> TextPrior:
        """Load a model.

        Args:
            name: a folder, a hub name, or "smollm2-135m", which travels in a package.
            device: where it computes, in single precision.

        Raises:
            UserError: nothing can be loaded from there.
        """
        source = language_model(name)
        return cls(load_language_model(source, "prior").to(device), load_tokenizer(source, "prior"))

    def log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """Log-likelihood of each text in nats, on its own: as a sentence, and a few words also as a part of one."""
        ways = [dict.fromkeys((as_sentence(text), *[text] * (len(text.split()) <= _FEW))) for text in texts]
        found = iter(self._read([way for its in ways for way in its]))
        return [float(np.logaddexp.reduce([next(found) - math.log(len(its)) for _ in its])) for its in ways]

    def _read(self, texts: Sequence[str]) -> list[float]:
        positions = getattr(self.model.config, "max_position_embeddings", None)  # some models know no end
        written = [self.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        written = [ids[: positions - 1] if positions else ids for ids in written]
        if reads_trees(self.model):
            return tree_log_likelihoods(self.model, [[self._begin, *ids] for ids in written])
        return log_likelihoods(self.model, [Example([self._begin, *ids], [IGNORED, *ids]) for ids in written])


def resolved(asked: str, known: str | None) -> str | None:
    """Name the prior that is meant by "auto", "none" or a name itself; None where there is none.

    Args:
        asked: see above.
        known: the one that a model was saved with, which is "auto" where it is installed, or a folder that is there.
    """
    if asked == "auto":
        return known if known and (installed(known) or Path(known).is_dir()) else None
    return None if asked == "none" else asked


def find_prior(asked: str, known: str | None, device: str = "cpu") -> Prior | None:
    """Give what :func:`resolved` names: at once if it was asked for by its name, else when it is first needed.

    Raises:
        UserError: what was asked for by its name cannot be loaded.
    """
    name = resolved(asked, known)
    if name is None:
        return None
    return _Waiting(name, device) if asked == "auto" else TextPrior.load(name, device)


class _Waiting:
    """A prior that is loaded when it is first asked, or beside other work that comes before."""

    def __init__(self, name: str, device: str) -> None:
        self._name, self._device = name, device

    @functools.cached_property
    def _loading(self) -> Future[TextPrior]:
        threads = ThreadPoolExecutor(1)
        loading = threads.submit(self._load)
        threads.shutdown(wait=False)
        return loading

    def _load(self) -> TextPrior:
        prior = TextPrior.load(self._name, self._device)
        prior.log_likelihoods(["."])  # its weights come from the disk when they are first read
        return prior

    def begin(self) -> None:
        _ = self._loading

    def log_likelihoods(self, texts: Sequence[str]) -> list[float]:
        return self._loading.result().log_likelihoods(texts)


def get_ready(prior: Prior | None) -> None:
    """Have a prior loaded on another thread, if it is one that waits to be asked."""
    if isinstance(prior, _Waiting):
        prior.begin()


def as_sentence(text: str) -> str:
    """Write a transcript in small letters as one would print it: "i'm here" → "I'm here."; another stays as it is."""
    if text != text.lower():
        return text
    text = re.sub(r"\bi\b", "I", text)
    return f"{text[:1].upper()}{text[1:]}{'.' * text[-1:].isalnum()}"
