"""Where things are computed."""

from __future__ import annotations

import torch

from sparq.errors import UserError


def usual_device() -> torch.device:
    """Give the device that is trained, quantised, scored and encoded on: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, as a clock must that times it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def known_device(device: str) -> torch.device:
    """Give the device of a name, such as "cpu", "cuda" or "cuda:1".

    Raises:
        UserError: torch knows none of that name, or there is no such GPU.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device: {device!r} is not known to torch") from error
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device: {device} (there is no such GPU, or this torch was built without CUDA)")
    return found
