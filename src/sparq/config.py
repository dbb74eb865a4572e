"""The settings of every part of a run, typed and frozen; :mod:`sparq.recipe` puts them together.

Where the paper gives a value (appendix E), it is the default. Paths are taken from the folder the command runs in.
Wherever a part can be had ready made, its key ``name`` says which: the name of weights that ship with SpARQ, or a
folder (for encoders and language models also the name of a model on a hub); without it the part is made by the run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sparq.errors import UserError
from sparq.schema import key

SINKS = ("none", "zero", "max", "mean", "learned", "clipped", "gated")
TASKS = ("textlm", "speechlm", "asr", "tts")
LORA_TARGETS = ("q", "k", "v", "o", "mlp")
INITIALISATIONS = ("default", "pissa", "milora", "loftq")
QUANTIZATION_METHODS = ("smoothquant", "rotation", "omniquant", "affinequant", "round")
QUANTIZATION_ROUNDINGS = ("nearest", "gptq")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The speech encoder whose features become units.

    Attributes:
        name: "moonshine-tiny" (travels in a package), or a HuBERT folder or hub name.
        layer: layer whose output is taken; null for the encoder's own default.
    """

    name: str = "moonshine-tiny"
    layer: int | None = key(None, minimum=0)


@dataclass(frozen=True, kw_only=True)
class UnitsConfig:
    """The codebook: k-means over encoder features.

    Attributes:
        name: a ready codebook; null fits one.
        clusters: number of units (paper, E.3: 200).
        fit_utterances: how many utterances k-means sees.
        seed: of the choice of utterances and of k-means.
    """

    name: str | None = None
    clusters: int = key(200, minimum=2)
    fit_utterances: int = key(400, minimum=1)
    seed: int = key(0, minimum=0)


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """The pieces that text and speech are written in.

    Attributes:
        name: a ready vocabulary; null makes one.
        mode: "joint", SentencePiece over text and units (the paper), or "extend", the model's own tokenizer plus units.
        size: number of pieces of a joint vocabulary.
        deduplicate: whether runs of one unit are merged.
        normalisation: of text: "none", "lower" (VoxtLM), or "letters" (letters, digits and apostrophes alone).
    """

    name: str | None = None
    mode: str = key("joint", choices=("joint", "extend"))
    size: int = key(1000, minimum=16)
    deduplicate: bool = True
    normalisation: str = key("letters", choices=("none", "lower", "letters"))


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Speech with its text: read from recordings, or text voiced by a teacher.

    Attributes:
        kind: "text" (voiced by ``voice``) or "audio" (recordings with transcripts).
        path: the file or folder.
        name: how the source is called in the corpus; null for the name of the file or folder, without its suffix.
        voice: the teacher that reads text out.
        speeds: speaking rates, drawn from for each utterance; 1 is the voice's own.
        phrases: how many phrases of one to five words are cut out of the text besides; they are a source of their own,
            "<name>/phrases".
        held_out: how many different sentences are kept for evaluation and never trained on, whoever says them; with
            ``phrases``, one phrase of each of them too.
        held_out_from: "anywhere" in the source, or its "end", where published corpora have their development part.
        limit: how many sentences are used at most, those held out included; null for all.
        keep_audio: how many training sentences keep their audio, which a vocoder is trained on.
    """

    kind: str = key(choices=("text", "audio"))
    path: str
    name: str | None = key(None, pattern=r"[^/]+")
    voice: str = "hibari"
    speeds: tuple[float, ...] = key((1.0,), minimum=0.25, maximum=4)
    phrases: int = key(0, minimum=0)
    held_out: int = key(0, minimum=0)
    held_out_from: str = key("anywhere", choices=("anywhere", "end"))
    limit: int | None = key(None, minimum=1)
    keep_audio: int = key(0, minimum=0)

    def __post_init__(self) -> None:
        if not self.speeds:
            raise UserError("speeds: [] (expected at least one speed)")
        if self.phrases and self.kind == "audio":
            raise UserError(
                f"phrases: {self.phrases} (expected 0 for audio: phrases are cut out of text that is voiced)"
            )
        if self.limit is not None and self.held_out > self.limit:
            raise UserError(f"held_out: {self.held_out} (expected at most the limit, which is {self.limit})")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What the model learns from.

    Attributes:
        sources: where speech and text come from.
        encoder: makes features of speech.
        units: makes units of features.
        processes: how many processes voice and encode; what comes out is the same for any number.
        limit: how many utterances over all sources at most, in the sources' proportions; null for all.
        seed: of every random choice (speeds, phrases, the held-out part).
    """

    sources: tuple[SourceConfig, ...]
    encoder: EncoderConfig = EncoderConfig()
    units: UnitsConfig = UnitsConfig()
    processes: int = key(2, minimum=1)
    limit: int | None = key(None, minimum=1)
    seed: int = key(0, minimum=0)

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("sources: [] (expected at least one source)")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The language model that is adapted.

    Attributes:
        name: pretrained weights, where ``{sink}`` stands for the attention variant; null starts from nothing with
            the shape that the other keys give.
        architecture: "llama" (rotary positions, RMS norms) or "opt" (learned positions, layer norms).
        hidden_size: width of the residual stream.
        layers: number of transformer blocks.
        heads: attention heads; they divide ``hidden_size``.
        intermediate_size: width inside the MLP.
        max_positions: longest sequence, in pieces.
        dropout: of attention and, where the architecture has it, of the residual stream.
    """

    name: str | None = None
    architecture: str = key("llama", choices=("llama", "opt"))
    hidden_size: int = key(256, minimum=8)
    layers: int = key(5, minimum=1)
    heads: int = key(4, minimum=1)
    intermediate_size: int = key(704, minimum=8)
    max_positions: int = key(1024, minimum=16)
    dropout: float = key(0.1, minimum=0, maximum=0.9)

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise UserError(f"heads: {self.heads} (expected a divisor of hidden_size, which is {self.hidden_size})")

    def weights(self, sink: str) -> str | None:
        """Name the pretrained weights of one attention variant; None when it starts from nothing."""
        return None if self.name is None else self.name.replace("{sink}", sink)


@dataclass(frozen=True, kw_only=True)
class ClippingConfig:
    """The clipped softmax, clip((ζ − γ)·softmax + γ, 0, 1) (Bondarenko et al. 2023; paper, G.1).

    Attributes:
        gamma: γ; null takes −alpha / the longest sequence that the model has positions for.
        alpha: sets γ where ``gamma`` is null.
        zeta: ζ.
    """

    gamma: float | None = key(None, maximum=0)
    alpha: float = key(12.0, minimum=0)
    zeta: float = key(1.0, minimum=1)


@dataclass(frozen=True, kw_only=True)
class GatingConfig:
    """Gated attention, a gate for every head and token (Bondarenko et al. 2023; paper, G.1).

    Attributes:
        opening: π, the share that an untrained gate lets through.
        pretrained: whether gates are multiplied by 1/π, so that a pretrained model starts as what it was; false is
            for a model from nothing.
    """

    opening: float = key(0.25, above=0, maximum=0.99)
    pretrained: bool = True


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The attention variants that are compared; each is adapted, quantised and evaluated.

    Attributes:
        sinks: "none" (vanilla), "zero" (softmax_1), "max" (the paper's max-shift), "mean", "learned"; and the paper's
            baselines "clipped" (clipped softmax) and "gated" (vanilla with gates).
        implementation: "fused" kernels or the "plain" definitions; clipped softmax is always plain.
        detach: leave the sink's own gradient out.
        clipping: of the variant "clipped".
        gating: of the variant "gated".
    """

    sinks: tuple[str, ...] = key(("none", "max", "zero"), choices=SINKS)
    implementation: str = key("fused", choices=("fused", "plain"))
    detach: bool = False
    clipping: ClippingConfig = ClippingConfig()
    gating: GatingConfig = GatingConfig()

    def __post_init__(self) -> None:
        if not self.sinks or len(set(self.sinks)) < len(self.sinks):
            raise UserError(f"sinks: {list(self.sinks)} (expected at least one, each once)")

    def arguments(self, sink: str) -> dict[str, Any]:
        """Give what :func:`sparq.attention.install` is called with for one of ``SINKS``."""
        if sink == "clipped":
            gamma, alpha = self.clipping.gamma, self.clipping.alpha
            chosen = {"alpha": alpha} if gamma is None else {"gamma": gamma}
            return {"sink": "clipped", "implementation": "plain", **chosen, "zeta": self.clipping.zeta}
        if sink == "gated":
            gate = {"gate_opening": self.gating.opening, "gate_pretrained": self.gating.pretrained}
            return {"sink": "none", "implementation": self.implementation, "gate": "per_token", **gate}
        detach = self.detach and sink in {"max", "mean"}
        return {"sink": sink, "implementation": self.implementation, "detach": detach}


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (paper, E.1).

    Attributes:
        rank: of each adapter.
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
class AdaptationConfig:
    """How the language model learns the four tasks (paper, E.1); it ends at the first of steps, epochs, minutes.

    Attributes:
        method: "full" trains every weight, "lora" adapters and the new embeddings, "qlora" the same on a frozen base in
            8 or 4 bits.
        lora: the adapters of methods "lora" and "qlora".
        qlora: the base of method "qlora".
        optimizer: "adam" (the paper), "adamw", or "muon" for the hidden matrices with AdamW for the rest.
        learning_rate: its largest value, after the warm-up.
        schedule: what follows the warm-up: "constant", "linear" or "cosine" to nothing, or "inverse_sqrt".
        warmup_steps: steps over which the learning rate rises.
        beta2: decay of the optimizer's second moment.
        weight_decay: of the optimizer.
        batch_bins: padded pieces in a batch: longest sequence × number of sequences.
        accumulate: batches per step.
        steps: optimizer steps.
        epochs: passes over the corpus.
        minutes: time spent training.
        gradient_clip: largest norm of the gradient.
        label_smoothing: probability given to the other pieces.
        precision: of the computation; the weights stay in float32.
        task_weights: how often each task is drawn, relative to the others; a task left out is not trained.
        curriculum: short utterances first; null for all from the start.
        save_every: steps between checkpoints.
        log_every: steps between lines of the log.
        seed: of the order of batches, of dropout and of new weights.
    """

    method: str = key("lora", choices=("full", "lora", "qlora"))
    lora: LoraConfig = LoraConfig()
    qlora: QloraConfig = QloraConfig()
    optimizer: str = key("adam", choices=("adam", "adamw", "muon"))
    learning_rate: float = key(3e-4, above=0)
    schedule: str = key("linear", choices=("constant", "linear", "cosine", "inverse_sqrt"))
    warmup_steps: int = key(2500, minimum=0)
    beta2: float = key(0.999, above=0, maximum=0.9999)
    weight_decay: float = key(1e-6, minimum=0)
    batch_bins: int = key(5000, minimum=16)
    accumulate: int = key(1, minimum=1)
    steps: int | None = key(None, minimum=1)
    epochs: float | None = key(None, above=0)
    minutes: float | None = key(None, above=0)
    gradient_clip: float = key(1.0, above=0)
    label_smoothing: float = key(0.0, minimum=0, maximum=0.9)
    precision: str = key("float32", choices=("float32", "bfloat16", "float16"))
    task_weights: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(TASKS, 1.0), metadata={"names": TASKS, "minimum": 0}
    )
    curriculum: CurriculumConfig | None = None
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


@dataclass(frozen=True, kw_only=True)
class VocoderTrainingConfig:
    """The unit vocoder, ready made or trained on the corpus (paper, E.3).

    Attributes:
        name: a ready vocoder; null trains one.
        preset: "paper" (hop 320, for HuBERT), "paper-384" (the same for Moonshine's hop), or "small" (hop 384), which
            trains on a processor.
        steps: optimizer steps; null for what the preset takes.
        batch: segments in a batch; null for what the preset takes.
        seed: of the segments and of new weights.
    """

    name: str | None = None
    preset: str = key("paper-384", choices=("paper", "paper-384", "small"))
    steps: int | None = key(None, minimum=1)
    batch: int | None = key(None, minimum=1)
    seed: int = key(0, minimum=0)


@dataclass(frozen=True, kw_only=True)
class QuantizationRow:
    """One row of the table: a post-training quantisation (paper, section 4.1 and E.2).

    Attributes:
        method: "smoothquant", "rotation", "omniquant" or "affinequant", which learn, or "round" for nothing besides
            rounding the weights.
        weight_bits: width of the weights.
        activation_bits: width of the activations.
        alpha: how much difficulty SmoothQuant moves from activations to weights; the methods that learn begin there.
        calibration_sequences: how many sequences of the corpus ranges and GPTQ's inputs are taken from, or learnt on.
        rounding: of the weights: "nearest", or "gptq"; not for methods that learn.
        weight_clip_percent: share of the tail of the weights that is cut off (paper, G.4); not for methods that learn.
        group_size: input channels of a weight that share a scale; 0 for all, null for what the method takes.
        seed: of the random signs of a rotation.
        epochs: passes over the calibration sequences for each block, in methods that learn.
        batch_sequences: sequences in a step of the learning.
        transformation_rate: learning rate of scales, shifts and matrices.
        clipping_rate: learning rate of the learnt clipping.
        stability_factor: weight of what is beside the diagonal of AffineQuant's matrices.
    """

    method: str = key("smoothquant", choices=QUANTIZATION_METHODS)
    weight_bits: int = key(8, minimum=2, maximum=16)
    activation_bits: int = key(8, minimum=2, maximum=16)
    alpha: float = key(0.5, minimum=0, maximum=1)
    calibration_sequences: int = key(256, minimum=1)
    rounding: str = key("nearest", choices=QUANTIZATION_ROUNDINGS)
    weight_clip_percent: float = key(0.0, minimum=0, maximum=99)
    group_size: int | None = key(None, minimum=0)
    seed: int = key(0, minimum=0)
    epochs: int = key(20, minimum=1)
    batch_sequences: int = key(1, minimum=1)
    transformation_rate: float = key(5e-3, above=0, maximum=1)
    clipping_rate: float = key(1e-2, above=0, maximum=1)
    stability_factor: float = key(0.01, above=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """A real recording to transcribe for the report.

    Attributes:
        path: the audio file, or the name of one that travels in a package ("recordings/two_cities.wav").
        reference: what is said in it; null when nobody wrote it down.
    """

    path: str
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is scored, on utterances it never saw.

    Attributes:
        sentences: held-out utterances scored at most.
        beam: width of the beam search as it listens; 1 is greedy, as it speaks.
        max_pieces: longest answer, in pieces.
        recogniser: the judge that hears synthesised speech.
        recordings: real recordings to transcribe for the report.
        spoken: sentences to speak for the report.
    """

    sentences: int = key(100, minimum=1)
    beam: int = key(8, minimum=1)
    max_pieces: int = key(300, minimum=1)
    recogniser: str = "moonshine-tiny"
    recordings: tuple[RecordingConfig, ...] = ()
    spoken: tuple[str, ...] = ()
