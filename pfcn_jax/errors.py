"""The base of errors that are the user's to mend: their message names the file, key or number, and the way out."""

from __future__ import annotations

PAGE = "docs/troubleshooting.md"  # has a line for each code


class UserError(ValueError):
    """Shown as one line, without a traceback.

    Attributes:
      code: names the line of `PAGE` that says more; a subclass has its own, and an error may have a closer one.
    """

    code = "usage"

    def __init__(self, message: str = "", *, code: str = ""):
        super().__init__(message)
        if code:
            self.code = code


class TryAgain(UserError):
    """Nothing to mend: the same command may succeed later."""

    code = "try-again"


class ConfigError(UserError):
    """A config that cannot be used; the message names the key and the way out."""

    code = "config"


# EX_TEMPFAIL of sysexits.h: stopped on request, everything is on disk, the same command goes on.
STOPPED = 75


class Stopped(Exception):
    """A run that has stopped on request; the message is for the user."""


def with_code(error: UserError) -> str:
    """The message, its code and the page that explains it."""
    return f"{error} [{error.code}: {PAGE}]"


def explain(error: Exception) -> UserError | None:
    """An error of memory as one of the user; None for any other."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        first = (str(error).splitlines() or ["MemoryError"])[0]
        return UserError(f"out of memory ({first[:200]}); use smaller batches or images", code="out-of-memory")
    return None
