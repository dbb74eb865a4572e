"""Texts that go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparq.errors import UserError
from sparq.language.alphabet import in_letters_of
from sparq.language.generation import GenerationOptions, generate
from sparq.language.tasks import TASKS, continuation_prompt, prompt

if TYPE_CHECKING:
    from sparq.language.speech_lm import SpeechLM


def write_on(lm: SpeechLM, beginnings: Sequence[str], options: GenerationOptions) -> list[str]:
    """Write texts on; see ``SpeechLM.continue_text``."""
    task, vocabulary, context = TASKS["textlm"], lm.vocabulary, lm.model.config.max_position_embeddings
    prompts = []
    for text in beginnings:
        known = in_letters_of(vocabulary, text) if vocabulary.normalisation == "letters" else text
        begun = bool(vocabulary.write_text(known))
        ids = continuation_prompt(task, vocabulary, known) if begun else prompt(task, vocabulary)
        if len(ids) >= context:
            raise UserError(f"text {text[:40]!r}: too long to go on ({len(ids)} pieces of at most {context - 1})")
        prompts.append(ids)
    made = generate(lm.model, vocabulary, prompts, task.target, options)
    return [vocabulary.decode_text([*before, *after]) for before, after in zip(prompts, made, strict=True)]
