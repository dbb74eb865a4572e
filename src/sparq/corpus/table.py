"""The columns of a corpus: what is kept of an utterance."""

from __future__ import annotations

import pyarrow as pa

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("text", pa.string()),  # or null
        ("speaker", pa.string()),
        ("disturbed", pa.bool_()),
        ("seconds", pa.float64()),
        ("units", pa.list_(pa.uint16())),  # raw: one a frame; null where there is text alone
        ("word_starts", pa.list_(pa.int32())),  # first frame of each word of text.split(), or null
        ("word_ends", pa.list_(pa.int32())),  # the frame after its last
        ("audio", pa.binary()),  # 16 kHz FLAC, or null
        ("views", pa.list_(pa.list_(pa.uint16()))),  # raw units of the other ways in which it was heard, or null
    ]
)
SKIPPED = b"sparq.skipped"  # key of the table's metadata: JSON list of [id, reason]
