"""The base of errors that are the user's to mend: their message names the file, key or number, and the way out."""

from __future__ import annotations


class UserError(ValueError):
    """Shown as one line, without a traceback."""


class TryAgain(UserError):
    """Nothing to mend: the same command may succeed later."""
