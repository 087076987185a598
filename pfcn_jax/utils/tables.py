"""Tables for the terminal."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table


def as_text(table: Table, width: int = 100) -> str:
    """A table as plain text of at most `width` columns, without trailing lines."""
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()
