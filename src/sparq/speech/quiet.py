"""Standard error kept from the decoders of libsndfile, which print there by themselves (that of MP3 does)."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

_STANDARD_ERROR = 2
_LOCK = threading.Lock()


@contextlib.contextmanager
def quiet_standard_error() -> Iterator[None]:
    """Drop whatever this process writes to standard error meanwhile; one thread at a time.

    C code writes to the file behind it, so it is that which is exchanged. What other threads write is lost, too: hold
    it for milliseconds, around single calls.
    """
    with _LOCK, contextlib.ExitStack() as after:
        with contextlib.suppress(OSError):  # closed, as that of a daemon may be
            kept = os.dup(_STANDARD_ERROR)
            after.callback(os.close, kept)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            after.callback(os.close, nowhere)
            after.callback(os.dup2, kept, _STANDARD_ERROR)
            os.dup2(nowhere, _STANDARD_ERROR)
        yield
