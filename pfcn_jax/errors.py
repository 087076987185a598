"""The base of errors that are the user's to mend: their message names the file, key or number, and the way out."""

from __future__ import annotations


class UserError(ValueError):
    """Shown as one line, without a traceback."""


class TryAgain(UserError):
    """Nothing to mend: the same command may succeed later."""


class ConfigError(UserError):
    """A config that cannot be used; the message names the key and the way out."""


# EX_TEMPFAIL of sysexits.h: stopped on request, everything is on disk, the same command goes on.
STOPPED = 75


class Stopped(Exception):
    """A run that has stopped on request; the message is for the user."""
