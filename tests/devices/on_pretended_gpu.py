"""Everything that computes, once on the processor and once on a pretended GPU: ``on_pretended_gpu.py LIBRARY RUN``.

Prints a JSON object: the name of each check → null where both agree, or else what went wrong.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretended_gpu import NAME, OnGPU, PretendedGPU, install_device
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from sparq import making
from sparq.adaptation.lora import add_lora, keep_words, merge_lora
from sparq.adaptation.loss import counted_loss, logits_where_labels_count
from sparq.adaptation.optimizers import make_optimizer
from sparq.adaptation.teacher import TextTeacher
from sparq.attention import install
from sparq.attention.fused import fused_attention
from sparq.config import AdaptationConfig, EvaluationConfig, LoraConfig
from sparq.corpus.corpus import Corpus
from sparq.evaluation.linear_inputs import linear_inputs
from sparq.evaluation.outliers import outliers
from sparq.evaluation.perplexity import perplexity
from sparq.evaluation.scoring import assess
from sparq.evaluation.sinks import sinks
from sparq.finetuning.scores import score
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import Example
from sparq.paper import epoch_time
from sparq.quantization import QuantizationConfig, quantize
from sparq.quantization.normal_float import fake_normal_float
from sparq.recipe import load_recipe
from sparq.speech.audio import load_audio
from sparq.speech.recogniser import load_recogniser

VOCABULARY = 40
HERE = "cpu"


def small(kind: str, layers: int = 2) -> Any:
    """Make a model of random weights."""
    torch.manual_seed(0)
    size = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    if kind == "opt":
        shape = {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
        return OPTForCausalLM(OPTConfig(**size, **shape)).eval()
    return LlamaForCausalLM(LlamaConfig(**size, intermediate_size=24, num_key_value_heads=1)).eval()


def batches(device: str) -> list[dict[str, torch.Tensor]]:
    """Draw sequences, of which the second of each batch is padded on the left."""
    drawn = torch.Generator().manual_seed(1)
    made = []
    for _ in range(2):
        ids = torch.randint(0, VOCABULARY, (3, 12), generator=drawn)
        mask = torch.ones_like(ids)
        mask[1, :4] = 0
        labels = ids.masked_fill(mask == 0, -100)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return [{name: tensor.to(device) for name, tensor in batch.items()} for batch in made]


def numbers(value: Any) -> np.ndarray:
    """Give what a check computed as one row of numbers."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().double().numpy().ravel()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return np.concatenate([numbers(one) for one in value]) if value else np.zeros(0)
    if hasattr(value, "__dataclass_fields__"):
        return numbers([getattr(value, name) for name in value.__dataclass_fields__])
    return np.asarray(value, dtype=np.float64).ravel() if isinstance(value, (int, float, np.ndarray)) else np.zeros(0)


def attend(device: str, sink: str) -> Any:
    """Attend without probabilities in memory, forwards and backwards."""
    drawn = torch.Generator().manual_seed(2)
    states = [torch.randn(2, heads, 9, 8, generator=drawn).to(device).requires_grad_() for heads in (4, 2, 2)]
    learned = torch.linspace(-1, 1, 4).to(device).requires_grad_() if sink == "learned" else None
    out = fused_attention(*states, sink, causal=True, learned=learned)
    out.square().sum().backward()
    return [out, *(state.grad for state in states), *([] if learned is None else [learned.grad])]


def quantized(device: str, kind: str, sink: str, **how: Any) -> Any:
    """Quantise, and compute logits."""
    learns = "epochs" in how  # step after step, each of which is slow here
    model = small(kind, layers=1 if learns else 2).to(device)
    install(model, sink=sink)
    config = QuantizationConfig(weight_bits=6, activation_bits=8, **how)
    quantize(model, config, batches(HERE)[: 1 if learns else 2])
    return model(input_ids=batches(device)[0]["input_ids"]).logits


def text_teacher(device: str) -> TextTeacher:
    """Make a teacher of most of the words; it follows the labels to where they are."""
    vocabulary = type("Words", (), {"text_size": VOCABULARY - 4, "end_id": VOCABULARY - 1})()
    return TextTeacher(small("opt"), vocabulary)


def trained(device: str, optimizer: str) -> Any:
    """Take two steps."""
    model = small("llama").to(device)
    install(model, sink="max")
    steps = make_optimizer(model, AdaptationConfig(optimizer=optimizer, learning_rate=1e-2, method="full", steps=2))
    for batch in batches(device):
        model(**batch).loss.backward()
        steps.step()
        steps.zero_grad()
    return model(input_ids=batches(device)[0]["input_ids"]).logits


def adapted(device: str, initialisation: str) -> Any:
    """Take a step of adapters under new words, with a loss that a text model teaches, and merge them."""
    model = small("llama").to(device)
    lora = add_lora(
        model, LoraConfig(rank=2, alpha=2, dropout=0, initialisation=initialisation), grid=fake_normal_float
    )
    keep_words(lora, VOCABULARY - 4)
    steps = make_optimizer(lora, AdaptationConfig(optimizer="adam", learning_rate=1e-2, steps=1))
    batch = batches(device)[0]
    ids = batch["input_ids"].clamp(max=VOCABULARY - 5)
    with logits_where_labels_count(model, ids):
        outputs = lora(input_ids=ids, attention_mask=batch["attention_mask"])
    counted_loss(outputs, ids, teacher=text_teacher(device)).backward()
    steps.step()
    merged = merge_lora(lora)
    return merged(input_ids=ids).logits


def measured(device: str) -> Any:
    """Measure outliers, sinks, inputs of linears and perplexity of a small model."""
    model = small("llama").to(device)
    install(model, sink="zero")
    examples = batches(HERE)
    read = [Example(batch["input_ids"][0].tolist(), batch["labels"][0].tolist()) for batch in examples]
    return [outliers(model, examples), sinks(model, examples), linear_inputs(model, examples), perplexity(model, read)]


def spoken(device: str, run: Path) -> Any:
    """Write down, write on, and speak."""
    lm = SpeechLM.load(run / "max" / "speechlm", device)
    audio = load_audio(run / "said.wav")
    told = [lm.transcribe(audio), lm.transcribe(audio, views=2), lm.continue_text("the old")]
    return [[float(ord(letter)) for text in told for letter in text], lm.speak("Good morning.")[0]]


def made(device: str, run: Path) -> Any:
    """Quantise the model of a run into a folder, and score what is in it, where such things are done."""
    making.usual_device = lambda: torch.device(device)
    corpus = Corpus.load(run / "corpus")
    folder = run / device
    making.quantize_into(run / "max" / "speechlm", corpus, QuantizationConfig(calibration_sequences=4), folder)
    config = EvaluationConfig(sentences=1, beam=1, max_pieces=8)
    lm = SpeechLM.load(folder, device)
    found = assess(lm, corpus.utterances("held_out"), load_recogniser(config.recogniser), config)
    return [found.scores, found.accuracy, lm.model.get_input_embeddings().weight]


def fine_tuned(device: str, run: Path) -> Any:
    """Score a model as a fine-tuning does."""
    lm = SpeechLM.load(run / "max" / "speechlm", device)
    held_out = Corpus.load(run / "corpus").utterances("held_out")
    return score(lm, held_out[:1], held_out[1:2], 1)


def timed(device: str, run: Path) -> Any:
    """Time steps of two sinks, of which it is told that they were taken."""
    epoch_time.usual_device = lambda: torch.device(device)
    epoch_time.WARM_UP, epoch_time.STEPS = 0, 1
    lm, recipe = SpeechLM.load(run / "max" / "speechlm"), load_recipe(run / "tiny.yaml")
    corpus = Corpus.load(run / "corpus")
    found = epoch_time.epoch_times(lm.model, corpus, lm.vocabulary, recipe, ("none", "max"), lambda _: None)
    return [float(one.seconds_per_step > 0) for one in found]


def checks(run: Path) -> dict[str, Callable[[str], Any]]:
    """Name the checks; each is given a device."""
    every: dict[str, Callable[[str], Any]] = {
        "measures": measured,
        "speech": lambda device: spoken(device, run),
        "making and scoring": lambda device: made(device, run),
        "scores of a fine-tuning": lambda device: fine_tuned(device, run),
        "time of an epoch": lambda device: timed(device, run),
    }
    for sink in ("none", "max", "mean", "zero", "learned"):
        every[f"attention {sink}"] = lambda device, sink=sink: attend(device, sink)
    for name in ("adamw", "orthoadam", "muon"):
        every[f"optimizer {name}"] = lambda device, name=name: trained(device, name)
    for name in ("default", "pissa", "milora", "loftq"):
        every[f"adapters {name}"] = lambda device, name=name: adapted(device, name)
    ways: list[dict[str, Any]] = [
        {"method": method, "epochs": 1} for method in ("omniquant", "affinequant", "flatquant")
    ]
    ways += [{"method": method} for method in ("round", "smoothquant", "rotation")]
    ways += [{"method": "rotation", "rounding": "gptq"}, {"method": "rotation", "activation_grid": "asymmetric"}]
    for how in ways:
        for kind, sink in (("llama", "max"), ("opt", "none"))[: 1 if "epochs" in how else 2]:
            title = " ".join(["quantise", kind, *map(str, how.values())])
            every[title] = lambda device, how=how, kind=kind, sink=sink: quantized(device, kind, sink, **how)
    return every


def refused() -> str | None:
    """Find out whether the device refuses what a GPU would refuse."""
    there, here = torch.ones(2).to(NAME), torch.ones(2)
    wrong = (
        lambda: there + here,
        there.numpy,
        lambda: torch.rand(2, device=NAME, generator=torch.Generator()),
    )
    for attempt in wrong:
        try:
            attempt()
        except (RuntimeError, TypeError):
            continue
        return "takes what a GPU would refuse"
    return None if isinstance(there + there, OnGPU) and (there + there).tolist() == [2.0, 2.0] else "computes wrongly"


def main() -> None:
    library, run = Path(sys.argv[1]), Path(sys.argv[2])
    install_device(library)
    found: dict[str, str | None] = {}
    with PretendedGPU():
        found["what is refused"] = refused()
        for name, check in checks(run).items():
            try:
                here = numbers(check(HERE))
                there = numbers(check(NAME))
                assert here.size, "nothing is computed"
                np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-3)
                found[name] = None
            except Exception as error:  # noqa: BLE001 (whatever it is, it is told beside the others)
                where = [line.strip() for line in traceback.format_exc().splitlines() if "/sparq/" in line]
                found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} {where[-2:]}"
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
