"""What every optimizer of ours does first in a step: evaluate the closure that it may be given."""

from __future__ import annotations

from collections.abc import Callable

import torch


def evaluate(closure: Callable[[], float] | None) -> float | None:
    """Compute the loss, with gradients, where a step asks for it anew; None where it does not."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
