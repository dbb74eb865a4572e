"""A model while it generates: in evaluation mode, without settings of generation that came with it."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from transformers import GenerationConfig


@dataclasses.dataclass
class _Use:
    """What a model is to be again when the last of those who generate with it has ended."""

    training: bool
    settings: Any
    users: int = 0


_uses: weakref.WeakKeyDictionary[Any, _Use] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


@contextlib.contextmanager
def generating(model: Any) -> Iterator[None]:
    """Evaluation mode, and none of the generation settings that came with a pretrained model.

    Streams and threads may overlap, and end in any order.
    """
    with _lock:
        use = _uses.setdefault(model, _Use(model.training, model.generation_config))
        use.users += 1
        if use.users == 1:
            model.eval()
            model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        with _lock:
            use.users -= 1
            if not use.users:
                del _uses[model]
                model.train(use.training)
                model.generation_config = use.settings
