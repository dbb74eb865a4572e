"""The two ways in which SpARQ gives up, and the exit code of each."""

from __future__ import annotations


class SparqError(Exception):
    """Something broke that the user could not have known. The command line exits with 1."""

    exit_code = 1


class UserError(SparqError, ValueError):
    """What the user gave cannot be used; one line that names the file, the key or the value. Exit code 2."""

    exit_code = 2
