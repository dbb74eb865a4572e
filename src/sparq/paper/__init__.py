"""What is shown of a run, in the forms of the paper's tables and figures."""

from __future__ import annotations
