"""Sections of a Markdown document that a study writes its tables into."""

from __future__ import annotations

import pathlib

from pfcn_jax.errors import UserError


def write_section(path: pathlib.Path, name: str, text: str, *, kind: str = "benchmark") -> None:
    """Replaces what stands between `<!-- KIND NAME -->` and `<!-- end NAME -->` in a document.

    Raises:
      UserError: the document or one of the two lines is missing.
    """
    begin, end = f"<!-- {kind} {name} -->\n", f"<!-- end {name} -->"
    document = path.read_text() if path.is_file() else ""
    if begin not in document or end not in document.partition(begin)[2]:
        raise UserError(f"{path}: needs the lines '{begin.strip()}' and '{end}', the table goes between them")
    head, _, rest = document.partition(begin)
    tail = rest.partition(end)[2]
    path.write_text(f"{head}{begin}\n{text}\n\n{end}{tail}")
