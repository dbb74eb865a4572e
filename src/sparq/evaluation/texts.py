"""Plain text as sequences for any language model, SpeechLM or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparq.errors import UserError
from sparq.language.tasks import Example


def lines_of(path: Path) -> list[str]:
    """Read the lines of a text that hold something; of a table, what stands behind the last tab.

    Raises:
        UserError: it is not a text, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    lines = [line.rpartition("\t")[2] for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: has no text in it")
    return lines


def windows(tokenizer: Any, lines: Sequence[str], length: int) -> list[Example]:
    """Cut a text into sequences of one length, one behind the other; what is left over at its end is dropped.

    Args:
        tokenizer: of transformers.
        lines: of the text.
        length: pieces in a sequence.

    Raises:
        UserError: the text has fewer pieces than one sequence.
    """
    ids = tokenizer("\n".join(lines))["input_ids"]
    pieces = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    if not pieces:
        raise UserError(f"the text has {len(ids)} pieces (expected at least {length}, the length of a sequence)")
    return [Example(piece, piece) for piece in pieces]
