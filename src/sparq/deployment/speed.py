"""What a deployment saves: bytes on disk, peak memory and tokens per second, beside the same model in torch.

Each form of the model is measured in a process of its own, one after another, so that none has the memory, the threads
or the warm caches of the one before. Speeds are those of the fastest repeat, the least disturbed one.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sparq.attention import load_pretrained
from sparq.deployment import deploy
from sparq.deployment.config import DeploymentConfig
from sparq.deployment.graph import GRAPH, WEIGHTS
from sparq.deployment.in_torch import multiplies_four_bits, quantized_copy, require_device
from sparq.deployment.runtime import DeployedModel
from sparq.device import synchronize
from sparq.errors import SparqError, UserError

TORCH = {"torch float32": torch.float32, "torch bfloat16": torch.bfloat16}
LOW_BIT = {"torch int8": 8, "torch 4-bit": 4}
ONNX = {"onnx float32": 32, "onnx int8": 8, "onnx 4-bit": 4}
FORMS = (*TORCH, *LOW_BIT, *ONNX)
BASELINE = FORMS[0]


@dataclasses.dataclass(frozen=True)
class Load:
    """What a model is timed on, one sequence at a time.

    Attributes:
        prompt: tokens of the prompt that is read at once.
        decoded: tokens that are made behind it, one after another.
        repeats: how often that is done.
        threads: of torch and of ONNX Runtime; 0 for as many as torch takes.
        device: where torch computes.
    """

    prompt: int = 128
    decoded: int = 32
    repeats: int = 5
    threads: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in {"prompt": 1, "decoded": 1, "repeats": 1, "threads": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"bench.{name}: {getattr(self, name)} (expected a whole number of at least {least})")
        require_device(self.device, bits=8)


@dataclasses.dataclass(frozen=True)
class Speed:
    """What was measured of one form.

    Attributes:
        form: one of ``FORMS``.
        bytes_on_disk: of the weights and the graph.
        peak_memory: most bytes that were resident, or allocated on a GPU; ``memory_before`` of them were there before
            the model was loaded.
        prefill: tokens of a prompt read per second.
        decode: tokens made per second.
        prefill_cpu, decode_cpu: the same per second of processor time, which other programs on the machine disturb
            less; of several threads, the waiting counts too.
    """

    form: str
    bytes_on_disk: int
    peak_memory: int
    memory_before: int
    prefill: float
    decode: float
    prefill_cpu: float
    decode_cpu: float


def compare(
    model: PreTrainedModel,
    work: Path,
    load: Load | None = None,
    forms: Sequence[str] | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> list[Speed]:
    """Write a model in each form, and measure each.

    Args:
        model: a causal LM that can be deployed, in float32.
        work: an existing folder that the forms are written into; each is removed when it is measured.
        load: what is timed; None for the defaults.
        forms: which forms; None for all that can run.
        told: told of each form before it is measured.

    Raises:
        UserError: the model cannot be deployed, or its positions end before the load does.
        SparqError: a process broke.
    """
    load = load or Load()
    if forms is None:
        forms = forms_here(load.device)
    wanted, context = load.prompt + load.decoded, model.config.max_position_embeddings
    if wanted > context:
        raise UserError(f"bench: {wanted} tokens of prompt and answer, but the model has only {context} positions")
    found = []
    for form in forms:
        told(form)
        folder = work / form.replace(" ", "-")
        folder.mkdir()
        _write(model, form, folder)
        found.append(_in_a_process(form, folder, load))
        for path in folder.iterdir():
            path.unlink()
    return found


def forms_here(device: str) -> list[str]:
    """List the forms that can run: a graph on a CPU alone, torch's low bits where torchao is installed."""
    found = torch.device(device)
    without = set() if importlib.util.find_spec("torchao") else set(LOW_BIT)
    if found.type != "cpu":
        without |= set(ONNX)
    if not multiplies_four_bits(found):
        without |= {form for form, bits in LOW_BIT.items() if bits == 4}
    return [form for form in FORMS if form not in without]


def _write(model: PreTrainedModel, form: str, folder: Path) -> None:
    if form in ONNX:
        deploy(model, DeploymentConfig(ONNX[form]), folder)
        return
    if form in LOW_BIT:
        quantized_copy(model, DeploymentConfig(LOW_BIT[form], engine="torch")).save_pretrained(folder)
        return
    once: dict[int, torch.Tensor] = {}  # tied weights stay tied
    state = {
        key: once.setdefault(tensor.data_ptr(), tensor.to(TORCH[form])) if tensor.is_floating_point() else tensor
        for key, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state)


def _in_a_process(form: str, folder: Path, load: Load) -> Speed:
    given = [form, str(folder), json.dumps(dataclasses.asdict(load))]
    run = subprocess.run([sys.executable, "-m", __name__, *given], capture_output=True, text=True, check=False)
    if run.returncode:
        reason = (run.stderr.strip() or "killed").splitlines()[-1]
        raise SparqError(f"bench: {form} broke ({reason[:200]})")
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name in (GRAPH, WEIGHTS) or _weights(path))
    return Speed(form=form, bytes_on_disk=size, **json.loads(run.stdout.splitlines()[-1]))


def _weights(path: Path) -> bool:
    return path.suffix == ".safetensors"


def measure(form: str, folder: Path, load: Load) -> dict[str, float]:
    """Measure a form, written into a folder, in this process; what `Speed` says besides form and bytes."""
    if load.threads:
        torch.set_num_threads(load.threads)
    device = torch.device(load.device)
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else _resident("VmRSS")
    model: Any = DeployedModel(folder) if form in ONNX else _loaded(form, folder, device)
    prompt = torch.randint(1, model.config.vocab_size, (1, load.prompt), generator=torch.Generator().manual_seed(0))
    prompt = prompt.to(device)
    best = dict.fromkeys(("prefill", "decode", "prefill_cpu", "decode_cpu"), 0.0)
    with torch.no_grad():
        for _ in range(load.repeats + 1):  # the first one warms up, and may well be the fastest all the same
            wall, cpu = _now(device)
            out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
            between = _now(device)
            for index in range(load.decoded):
                out = model(
                    input_ids=out.logits[:, -1:].argmax(-1),
                    position_ids=torch.tensor([[load.prompt + index]], device=device),
                    past_key_values=out.past_key_values,
                    use_cache=True,
                )
            end = _now(device)
            speeds = {
                "prefill": load.prompt / (between[0] - wall),
                "decode": load.decoded / (end[0] - between[0]),
                "prefill_cpu": load.prompt / max(between[1] - cpu, 1e-9),
                "decode_cpu": load.decoded / max(end[1] - between[1], 1e-9),
            }
            best = {name: max(best[name], speed) for name, speed in speeds.items()}
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else _resident("VmHWM")
    return {"peak_memory": peak, "memory_before": before, **best}


def _loaded(form: str, folder: Path, device: torch.device) -> Any:
    """Load a torch model; around low bits, a CPU computes as `sparq.load` does, and a GPU in bfloat16."""
    around = torch.float32 if device.type == "cpu" else torch.bfloat16
    return load_pretrained(folder, dtype=TORCH.get(form, around)).to(device).eval()


def _now(device: torch.device) -> tuple[float, float]:
    """By the clock, and of the processor, once a GPU has done what it was given."""
    synchronize(device)
    return time.perf_counter(), time.process_time()


def _resident(field: str) -> int:
    """Bytes resident now (VmRSS) or at most (VmHWM) in this process.

    Not ``getrusage``, whose maximum a child inherits from the process that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise SparqError("bench: peak memory is read from /proc, which this system does not have") from error
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _main() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    parser = argparse.ArgumentParser()
    for name in ("form", "folder", "load"):
        parser.add_argument(name)
    given = parser.parse_args()
    sys.stdout.write(json.dumps(measure(given.form, Path(given.folder), Load(**json.loads(given.load)))) + "\n")


if __name__ == "__main__":
    _main()
