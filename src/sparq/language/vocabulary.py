"""The joint vocabulary of text pieces and speech pieces (paper, section 3.1: V_joint = V_txt ∪ V_sp).

Two modes, one face. ``joint`` is the paper's (and VoxtLM's): one SentencePiece unigram model over text and unit
characters, a unit u being written as the character U+4E00 + u. ``extend`` keeps the text tokenizer of a pretrained
model and adds speech pieces behind it. In both, a *line* is the written form of a sequence (see
:mod:`sparq.language.tasks`), and every id is known to be control, text or speech.
"""

from __future__ import annotations

import enum
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from typing_extensions import override

from sparq.artifacts import fingerprint, read_manifest, write_manifest
from sparq.errors import UserError
from sparq.language.writing import (
    CONTROLS,
    UNIT_ORIGIN,
    UNIT_RANGE,
    Normalisation,
    Writer,
    checked_units,
    unit_characters,
)


class Modality(enum.IntEnum):
    """What an id stands for."""

    CONTROL = 0
    TEXT = 1
    SPEECH = 2


class Vocabulary(Writer, ABC):
    """Ids of control, text and speech pieces.

    Attributes:
        mode: "joint" or "extend".
        units: number of units k of the codebook.
        deduplicate: whether repeats of a unit are merged before they are written.
        normalisation: how text is brought into form, see :func:`normalise_text`.
        size: number of ids; ``modality`` int8 [size] holds a :class:`Modality` for each.
        pad_id, end_id: padding (never predicted) and end of a sequence.
    """

    mode: str
    size: int
    pad_id: int
    end_id: int
    modality: np.ndarray

    @abstractmethod
    def encode(self, line: str) -> list[int]:
        """Ids of a line of control tokens, text and unit characters."""

    @abstractmethod
    def control(self, token: str) -> int:
        """Id of one of the four control tokens."""

    @abstractmethod
    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of the text ids among ``ids``; the others are passed over."""

    @abstractmethod
    def _speech_piece(self, index: int) -> str:
        """Unit characters of a speech id."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the vocabulary into an existing folder, with its manifest."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that gives ids their meaning."""

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text as it stands behind a control token."""
        return self.encode(" " + self.write_text(text))

    def encode_units(self, units: Sequence[int] | np.ndarray) -> list[int]:
        """Ids of units as they stand behind a control token."""
        return self.encode(self.write_units(units))

    def decode_units(self, ids: Sequence[int]) -> list[int]:
        """Units of the speech ids among ``ids``; the others are passed over."""
        return [
            ord(character) - UNIT_ORIGIN
            for index in ids
            if self.modality[index] == Modality.SPEECH
            for character in self._speech_piece(int(index))
        ]

    def allowed(self, target: Modality) -> np.ndarray:
        """Mask bool [size] of the ids that may be generated for a target: its own and the end."""
        mask = self.modality == target
        mask[self.end_id] = True
        return mask


class JointVocabulary(Vocabulary):
    """One SentencePiece model over text and unit characters (VoxtLM; paper, section 3.1).

    Ids follow VoxtLM's order: ``<blank>`` (padding) 0, ``<unk>`` 1, the four control tokens, pieces, the end last.
    """

    mode = "joint"

    def __init__(self, model: bytes, units: int, *, deduplicate: bool, normalisation: Normalisation) -> None:
        super().__init__(units, deduplicate=deduplicate, normalisation=normalisation)
        self._model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        count = self._pieces.get_piece_size()
        self.pad_id, self.end_id, self.size = 0, count, count + 1
        self._names = [self._pieces.id_to_piece(i) for i in range(count)]
        self.modality = np.zeros(self.size, np.int8)
        for index, piece in enumerate(self._names[2:], start=2):
            if piece in CONTROLS:
                continue
            self.modality[index] = Modality.SPEECH if UNIT_RANGE.search(piece) else Modality.TEXT

    @classmethod
    def train(
        cls,
        lines: Iterable[str],
        size: int,
        units: int,
        *,
        deduplicate: bool = True,
        normalisation: Normalisation = "letters",
    ) -> JointVocabulary:
        """Train pieces on lines of the ASR and TTS tasks.

        Args:
            lines: see :meth:`sparq.language.tasks.Task.line`.
            size: number of ids wanted, the end included.
            units: number of units; each has an id of its own whether it occurs or not.
            deduplicate: see :class:`Vocabulary`.
            normalisation: see :class:`Vocabulary`.

        Raises:
            UserError: there are no lines, or they do not hold enough for so many pieces.
        """
        stream = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=stream,
                vocab_size=size - 1,
                model_type="unigram",
                character_coverage=1.0,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                user_defined_symbols=list(CONTROLS),
                required_chars=unit_characters(range(checked_units(units))),
                pad_id=0,
                pad_piece="<blank>",
                unk_id=1,
                bos_id=-1,
                eos_id=-1,
                num_threads=1,
                input_sentence_size=200_000,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1][-200:]
            raise UserError(f"vocabulary.size: {size} pieces cannot be learnt from these lines ({reason})") from error
        return cls(stream.getvalue(), units, deduplicate=deduplicate, normalisation=normalisation)

    @override
    def encode(self, line: str) -> list[int]:
        return list(self._pieces.encode(line))

    @override
    def control(self, token: str) -> int:
        return int(self._pieces.piece_to_id(token))

    @override
    def decode_text(self, ids: Sequence[int]) -> str:
        pieces = [self._names[i] for i in ids if self.modality[i] == Modality.TEXT]
        return " ".join("".join(pieces).replace("\u2581", " ").split())

    @override
    def _speech_piece(self, index: int) -> str:
        return "".join(UNIT_RANGE.findall(self._names[index]))

    @property
    @override
    def fingerprint(self) -> str:
        model = np.frombuffer(self._model, np.uint8)
        return fingerprint(["joint", model, self.units, self.deduplicate, self.normalisation])

    @override
    def save(self, folder: Path) -> None:
        (folder / "joint.model").write_bytes(self._model)
        _write(self, folder)


class ExtendedVocabulary(Vocabulary):
    """The text tokenizer of a pretrained model with speech pieces behind it.

    Ids below ``text_size`` are the tokenizer's own, so a pretrained model keeps its language; then follow the four
    control tokens, padding, and the speech pieces (SentencePiece over unit characters, at least one a unit).
    """

    mode = "extend"

    def __init__(
        self, tokenizer: Any, model: bytes, units: int, *, deduplicate: bool, normalisation: Normalisation
    ) -> None:
        super().__init__(units, deduplicate=deduplicate, normalisation=normalisation)
        self._tokenizer = tokenizer
        self._model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        if tokenizer.eos_token_id is None:
            raise UserError(f"tokenizer {tokenizer.name_or_path}: has no end-of-sequence token")
        self.text_size = len(tokenizer)
        self._controls = {token: self.text_size + i for i, token in enumerate(CONTROLS)}
        self.pad_id = self.text_size + len(CONTROLS)
        self._first = self.pad_id + 1
        self.end_id = int(tokenizer.eos_token_id)
        # Two leading SentencePiece ids (unknown and the dummy for padding) never occur in unit strings.
        self._names = [self._pieces.id_to_piece(i) for i in range(self._pieces.get_piece_size())]
        self.size = self._first + len(self._names)
        self.modality = np.zeros(self.size, np.int8)
        self.modality[: self.text_size] = Modality.TEXT
        self.modality[list(tokenizer.all_special_ids)] = Modality.CONTROL
        for index, piece in enumerate(self._names):
            if UNIT_RANGE.search(piece):
                self.modality[self._first + index] = Modality.SPEECH

    @classmethod
    def train(
        cls,
        lines: Iterable[str],
        size: int,
        units: int,
        tokenizer: Any,
        *,
        deduplicate: bool = True,
        normalisation: Normalisation = "none",
    ) -> ExtendedVocabulary:
        """Learn ``size`` speech pieces from lines and put them behind a tokenizer's ids.

        Raises:
            UserError: there are no units in the lines, or not enough for so many pieces.
        """
        # Of lines that are units alone, SentencePiece takes no required character that does not occur in them.
        speech = (CONTROLS[1] + run for line in lines for run in re.findall(UNIT_RANGE.pattern + "+", line))
        # SentencePiece counts its own unknown and padding ids, which no unit string ever uses.
        pieces = JointVocabulary.train(speech, max(size, units) + 3 + len(CONTROLS), units)
        return cls(tokenizer, pieces._model, units, deduplicate=deduplicate, normalisation=normalisation)  # noqa: SLF001 (a sibling)

    @override
    def encode(self, line: str) -> list[int]:
        ids: list[int] = []
        for part in re.split(f"({'|'.join(CONTROLS)}|{UNIT_RANGE.pattern}+)", line):
            if part in self._controls:
                ids.append(self._controls[part])
            elif UNIT_RANGE.match(part):
                ids.extend(self._first + i for i in self._pieces.encode(part))
            elif part.strip():
                ids.extend(self._tokenizer.encode(part, add_special_tokens=False))
        return ids

    @override
    def control(self, token: str) -> int:
        return self._controls[token]

    @override
    def decode_text(self, ids: Sequence[int]) -> str:
        text = [int(i) for i in ids if self.modality[i] == Modality.TEXT]
        return str(self._tokenizer.decode(text, skip_special_tokens=True)).strip()

    @override
    def _speech_piece(self, index: int) -> str:
        return self._names[index - self._first]

    @property
    @override
    def fingerprint(self) -> str:
        model = np.frombuffer(self._model, np.uint8)
        text = self._tokenizer.backend_tokenizer.to_str()
        return fingerprint(["extend", model, text, self.units, self.deduplicate, self.normalisation])

    @override
    def save(self, folder: Path) -> None:
        (folder / "speech.model").write_bytes(self._model)
        self._tokenizer.save_pretrained(folder / "text")
        _write(self, folder)


def _write(vocabulary: Vocabulary, folder: Path) -> None:
    settings = {
        "mode": vocabulary.mode,
        "units": vocabulary.units,
        "deduplicate": vocabulary.deduplicate,
        "normalisation": vocabulary.normalisation,
        "size": vocabulary.size,
    }
    write_manifest(folder, "vocabulary", settings, {"pieces": vocabulary.fingerprint})


def load_vocabulary(folder: Path) -> Vocabulary:
    """Load a vocabulary that was saved.

    Raises:
        UserError: the folder is not a vocabulary, or its files are not the ones that were saved.
    """
    manifest = read_manifest(folder, "vocabulary")
    settings = manifest.settings
    vocabulary: Vocabulary
    try:
        common = {key: settings[key] for key in ("units", "deduplicate", "normalisation")}
        if settings["mode"] == "joint":
            vocabulary = JointVocabulary((folder / "joint.model").read_bytes(), **common)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder / "text")
            vocabulary = ExtendedVocabulary(tokenizer, (folder / "speech.model").read_bytes(), **common)
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder}: damaged vocabulary ({str(error).splitlines()[0]})") from error
    if vocabulary.fingerprint != manifest.inputs.get("pieces"):
        raise UserError(f"{folder}: the vocabulary's files were changed after it was saved")
    return vocabulary
