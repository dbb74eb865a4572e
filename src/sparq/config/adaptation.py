"""How the language model is adapted: all of it, or adapters."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparq.errors import UserError
from sparq.schema import key

TASKS = ("textlm", "speechlm", "asr", "tts")
LORA_TARGETS = ("q", "k", "v", "o", "mlp")
FINETUNING_METHODS = ("lora", "qlora8", "qlora4", "full")  # of sparq finetune: a method, and the bits of its base
INITIALISATIONS = ("default", "pissa", "milora", "loftq")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (paper, E.1).

    Attributes:
        rank: of each adapter. Above the smaller side of a linear it can do no more there; it is allowed, with a
            warning, for sweeps.
        alpha: the adapters are scaled by alpha / rank.
        dropout: before each adapter.
        targets: which linears get one.
        initialisation: where they start: "default" (as nothing), "pissa", "milora", or "loftq" (of method "qlora").
        loftq_iterations: how often LoftQ alternates.
    """

    rank: int = key(256, minimum=1)
    alpha: float = key(256.0, above=0)
    dropout: float = key(0.05, minimum=0, maximum=0.9)
    targets: tuple[str, ...] = key(LORA_TARGETS, choices=LORA_TARGETS)
    initialisation: str = key("default", choices=INITIALISATIONS)
    loftq_iterations: int = key(5, minimum=1)


@dataclass(frozen=True, kw_only=True)
class QloraConfig:
    """The frozen base under the adapters of method "qlora" (paper, tables 2 and 10).

    Attributes:
        bits: 4 (NF4) or 8 (LLM.int8).
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UserError(f"bits: {self.bits} (expected 4 or 8)")


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Short examples first: alignment between speech and text appears on phrases, not on sentences.

    Text alone (textLM) has nothing to align, and is read as it is from the start.
    Where a voice told when each word was said, examples are spans of sentences: some words and the units spoken
    during them.

    Attributes:
        words: examples hold at most so many words at first.
        longest: the limit grows evenly to so many words ...
        batches: ... over so many batches, and is lifted then; 0 sets no limit from the start.
        spans: share of the examples that are spans of any length after that.
    """

    words: int = key(3, minimum=1)
    longest: int = key(20, minimum=1)
    batches: int = key(1500, minimum=0)
    spans: float = key(0.0, minimum=0, maximum=1)

    def limit(self, batch: int) -> int | None:
        """Give the largest number of words at a batch, None for any."""
        if batch >= self.batches:
            return None
        return self.words + max(0, self.longest - self.words) * batch // self.batches


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """An end where a held-out loss no longer falls; the weights with the lowest one are kept.

    The loss is measured before training, every ``save_every`` steps and at the end.

    Attributes:
        patience: measurements without a new lowest loss after which training ends.
        task: whose loss is watched.
    """

    patience: int = key(3, minimum=1)
    task: str = key("asr", choices=TASKS)


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig:
    """How the language model learns the four tasks (paper, E.1); it ends at the first of steps, epochs, minutes.

    Attributes:
        method: "full" trains every weight, "lora" adapters and the embeddings (behind a pretrained model's own
            tokenizer those of speech alone), "qlora" the same on a frozen base in 8 or 4 bits.
        lora: the adapters of methods "lora" and "qlora".
        qlora: the base of method "qlora".
        optimizer: "adam" (the paper), "adamw", "orthoadam" (Adam in a random orthogonal basis), or "muon" for the
            hidden matrices with AdamW for the rest.
        learning_rate: its largest value, after the warm-up.
        schedule: what follows the warm-up: "constant", "linear" or "cosine" to nothing, or "inverse_sqrt".
        warmup_steps: steps over which the learning rate rises; null for a tenth of the steps and at most the paper's
            2,500.
        beta2: decay of the optimizer's second moment.
        weight_decay: of the optimizer; with "adam" and "orthoadam" not of embeddings and the output layer.
        batch_bins: padded pieces in a batch: longest sequence × number of sequences.
        accumulate: batches per step.
        steps: optimizer steps.
        epochs: passes over the corpus.
        minutes: time spent training.
        early_stopping: may end it sooner, and keeps the best weights; null for the last ones.
        gradient_clip: largest norm of the gradient.
        label_smoothing: probability given to the other pieces.
        precision: of the computation; the weights stay in float32. A processor without arithmetic of bfloat16 takes
            float32 in its place, and says so.
        task_weights: how often each task is drawn, relative to the others; a task left out is not trained.
        text_targets: what textLM learns: the "words" of the corpus, or what the pretrained "model" said of them before
            it was adapted, with a vocabulary of mode extend.
        curriculum: short utterances first; null for all from the start.
        unit_noise: speech that is to be understood is changed, in each example anew, as other readers of the corpus
            would say it: from nothing up to this share of the difference between two of them. 0 leaves it as it is;
            more needs texts that were said more than once.
        save_every: steps between checkpoints.
        log_every: steps between lines of the log.
        seed: of the order of batches, of dropout and of new weights.
    """

    method: str = key("lora", choices=("full", "lora", "qlora"))
    lora: LoraConfig = LoraConfig()
    qlora: QloraConfig = QloraConfig()
    optimizer: str = key("adam", choices=("adam", "adamw", "orthoadam", "muon"))
    learning_rate: float = key(3e-4, above=0)
    schedule: str = key("linear", choices=("constant", "linear", "cosine", "inverse_sqrt"))
    warmup_steps: int | None = key(None, minimum=0)
    beta2: float = key(0.999, above=0, maximum=0.9999)
    weight_decay: float = key(1e-6, minimum=0)
    batch_bins: int = key(5000, minimum=16)
    accumulate: int = key(1, minimum=1)
    steps: int | None = key(None, minimum=1)
    epochs: float | None = key(None, above=0)
    minutes: float | None = key(None, above=0)
    early_stopping: EarlyStoppingConfig | None = None
    gradient_clip: float = key(1.0, above=0)
    label_smoothing: float = key(0.0, minimum=0, maximum=0.9)
    precision: str = key("float32", choices=("float32", "bfloat16", "float16"))
    task_weights: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(TASKS, 1.0), metadata={"names": TASKS, "minimum": 0}
    )
    text_targets: str = key("words", choices=("words", "model"))
    curriculum: CurriculumConfig | None = None
    unit_noise: float = key(0.0, minimum=0, maximum=1)
    save_every: int = key(500, minimum=1)
    log_every: int = key(10, minimum=1)
    seed: int = key(0, minimum=0)

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None and self.minutes is None:
            raise UserError("steps: missing (expected steps, epochs or minutes)")
        if self.lora.initialisation == "loftq" and self.method != "qlora":
            raise UserError("lora.initialisation: loftq (expected with method: qlora, whose grid it makes up for)")
        if not any(self.task_weights.values()):
            raise UserError("task_weights: all 0 (expected at least one task with a weight > 0)")
