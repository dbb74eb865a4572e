"""What a model costs on this machine: ``sparq bench``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparq.commands.arguments import add_command, count, positive, print_json

if TYPE_CHECKING:
    from sparq.deployment.speed import Speed


def add_bench(made: Any) -> None:
    """Declare the parts of ``sparq bench``."""
    text = "Measure a model on this machine"
    command = made.add_parser("bench", help=text, description=text)
    parts = command.add_subparsers(required=True, dest="part", metavar="PART")
    text = "Bytes, memory and speed in torch (float32, bfloat16, int8, 4 bits) and ONNX (float32, int8, 4 bits)"
    part = add_command(parts, "deploy", deploy, text)
    text = "a SpeechLM, a transformers folder or hub name, or smollm2-135m (default: the model that ships)"
    part.add_argument("model", nargs="?", help=text)
    part.add_argument("--prompt", type=positive, default=128, help="tokens read at once (default 128)")
    part.add_argument("--tokens", type=positive, default=32, help="made one after another (default 32)")
    part.add_argument("--repeats", type=positive, default=5, help="of which the fastest counts (default 5)")
    part.add_argument("--threads", type=count, default=0, help="default: as many as torch takes")
    part.add_argument("--device", default="cpu", help="where torch computes: cpu (default) or cuda")


def deploy(given: argparse.Namespace) -> None:
    """Measure what a deployment saves."""
    from sparq.deployment.speed import BASELINE, Load, compare, forms_here
    from sparq.language.folder import no_progress_bars

    load = Load(given.prompt, given.tokens, given.repeats, given.threads, given.device)
    forms = forms_here(load.device)
    model = _language_model(given.model)

    def told(form: str) -> None:
        if not given.json:
            print(f"measuring {form} ({forms.index(form) + 1} of {len(forms)}) ...", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="sparq-bench-") as work, no_progress_bars():
        speeds = compare(model, Path(work), load, forms, told)
    base = next(speed for speed in speeds if speed.form == BASELINE)
    if given.json:
        print_json({"load": dataclasses.asdict(load), "forms": [told_of(speed, base) for speed in speeds]})
        return
    print(f"{'':16}{'on disk':>12}{'':>8}{'peak memory':>14}{'prefill':>13}{'':>8}{'decode':>13}{'':>8}")
    print(f"{'':16}{'MB':>12}{'':>8}{'MB':>14}{'tokens/s':>13}{'':>8}{'tokens/s':>13}{'':>8}")
    for speed in speeds:
        row = told_of(speed, base)
        print(
            f"{speed.form:16}{speed.bytes_on_disk / 1e6:12.1f}{row['bytes_ratio']:7.2f}x"
            f"{speed.peak_memory / 1e6:14.0f}{speed.prefill:13.0f}{row['prefill_ratio']:7.2f}x"
            f"{speed.decode:13.1f}{row['decode_ratio']:7.2f}x"
        )
    before = f"; {base.memory_before / 1e6:.0f} MB of the peak are Python, torch and transformers"
    print(f"x: of {BASELINE}{before if load.device == 'cpu' else ''}")


def told_of(speed: Speed, base: Speed) -> dict[str, Any]:
    """Give what was measured of a form, and its ratios to the baseline."""
    told = {name: round(value, 1) if isinstance(value, float) else value for name, value in vars(speed).items()}
    return told | {
        "bytes_ratio": round(speed.bytes_on_disk / base.bytes_on_disk, 3),
        **{
            f"{name}_ratio": round(getattr(speed, name) / getattr(base, name), 2)
            for name in ("prefill", "decode", "prefill_cpu", "decode_cpu")
        },
    }


def _language_model(name: str | None) -> Any:
    """Load a SpeechLM's language model, or any other model that can be deployed."""
    import sparq
    from sparq.assets import DEFAULT_MODEL, language_model, ready_made
    from sparq.language.folder import load_language_model

    folder = ready_made(name or DEFAULT_MODEL, must_exist=False)
    return sparq.load(folder).model if folder else load_language_model(language_model(str(name)), "model")
