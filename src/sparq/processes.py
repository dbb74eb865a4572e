"""Which of several processes this is, when ``torchrun`` started them."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this is the first of the processes that ``torchrun`` started, or there are no others."""
    return int(os.environ.get("RANK", "0")) == 0
