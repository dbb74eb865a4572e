"""Time fused against plain attention, forward and backward, side by side in one run.

    python benchmarks/attention.py                      # the figures in results/attention_speed.json
    python benchmarks/attention.py --repeats 3 --output /tmp/check.json

Every repetition runs every contender once, each time starting with another, so that whatever else the machine does
falls on all alike. Reported are medians, and medians of the ratios within a repetition. "eager" is what transformers
computes with every probability in memory; "plain" is the definition in ``sparq.attention.softmax``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from sparq.artifacts import provenance, write_text
from sparq.attention import attention, fused_attention

Contender = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# The most that a form may take, as a multiple of PyTorch's own attention; and the least by which it must beat eager.
MOST_OF_SDPA = {"fused zero": 1.05, "fused max": 1.3}
LEAST_OVER_EAGER = 1.5


def eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """Attend as transformers' eager functions do."""
    scores = query @ key.mT * query.shape[-1] ** -0.5 + later
    return torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ value


def contenders(arguments: argparse.Namespace) -> dict[str, Contender]:
    length, heads = arguments.length, arguments.heads
    later = torch.full((length, length), torch.finfo(arguments.dtype).min, dtype=arguments.dtype).triu(1)
    later = later.to(arguments.device)
    learned = torch.zeros(heads, device=arguments.device, requires_grad=True)
    named: dict[str, Contender] = {
        "eager softmax": lambda q, k, v: eager(q, k, v, later),
        "sdpa": lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    for sink in ("zero", "max"):
        named[f"plain {sink}"] = lambda q, k, v, sink=sink: attention(q, k, v, sink, causal=True)[0]
    for sink in ("zero", "max", "mean", "learned"):
        named[f"fused {sink}"] = lambda q, k, v, sink=sink: fused_attention(q, k, v, sink, causal=True, learned=learned)
    named["fused max, detached"] = lambda q, k, v: fused_attention(q, k, v, "max", causal=True, detach=True)
    return named


def seconds(run: Contender, states: list[torch.Tensor], gradient: torch.Tensor) -> float:
    leaves = [x.detach().requires_grad_() for x in states]
    if gradient.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(*leaves).backward(gradient)
    if gradient.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time all contenders: name → median milliseconds and median ratios to SDPA and to eager softmax."""
    torch.manual_seed(0)
    shape = arguments.batch, arguments.heads, arguments.length, arguments.width
    *states, gradient = (torch.randn(shape, dtype=arguments.dtype, device=arguments.device) for _ in range(4))
    runs = contenders(arguments)
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for repetition in range(-arguments.warm_up, arguments.repeats):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            taken = seconds(runs[name], states, gradient)
            if repetition >= 0:
                times[name].append(taken)
        print(f"\r{max(repetition + 1, 0)}/{arguments.repeats}", end="", file=sys.stderr)
    print(file=sys.stderr)

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))

    return {
        name: {
            "milliseconds": round(1000 * statistics.median(taken), 3),
            "times_sdpa": round(ratio(name, "sdpa"), 3),
            "speed_over_eager": round(1 / ratio(name, "eager softmax"), 3),
        }
        for name, taken in times.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--width", type=int, default=64, help="the head dimension")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=45)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("results/attention_speed.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    rows = measure(arguments)
    checks = {f"{name}: at most {most} x sdpa": rows[name]["times_sdpa"] <= most for name, most in MOST_OF_SDPA.items()}
    for name in MOST_OF_SDPA:
        fast = rows[name]["speed_over_eager"] >= LEAST_OVER_EAGER
        checks[f"{name}: at least {LEAST_OVER_EAGER} x faster than eager softmax"] = fast
    for name, row in rows.items():
        print(
            f"{name:<22}{row['milliseconds']:>10.2f} ms{row['times_sdpa']:>8.2f} x sdpa"
            f"{row['speed_over_eager']:>8.2f} x as fast as eager"
        )
    for check, held in checks.items():
        print("ok  " if held else "FAIL", check)
    settings = {name: str(value) for name, value in vars(arguments).items() if name != "output"}
    report = {
        "what": "attention, forward and backward, causal; medians of alternating repetitions",
        "made": provenance(),
        "torch": torch.__version__,
        "load_average_before": round(load, 2),
        "settings": settings,
        "rows": rows,
        "checks": checks,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.output, json.dumps(report, indent=2) + "\n")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
