"""docs/faults.md holds what the verbs say to each kind of fault; PFCN_WRITE_FAULTS=1 rewrites it."""

from __future__ import annotations

import os
import pathlib
import re
import runpy
import shlex
import sys

import pytest

from pfcn_jax import main as front_door
from pfcn_jax.errors import PAGE
from tests.documents import ROOT
from tests.support.fault_inputs import deep_png
from tests.support.faults import SECTIONS, Fault, Section

FILE = ROOT / "docs/faults.md"
HEAD = """# Damaged data

What the program says to files as annotation tools write them: for each kind of fault the exit status, and the first
line about it (shortened; `damaged` is the folder of the input). `tests/test_faults_page.py` makes each fault, runs the
command and compares this page, or writes it (`PFCN_WRITE_FAULTS=1`). [Troubleshooting](troubleshooting.md) says for
each code what to do.
"""
SHOWN = 240  # characters of a message
pytestmark = pytest.mark.filterwarnings("ignore")  # of Pillow, about images that are too large


def lines_of(text: str, root: pathlib.Path) -> list[str]:
    """Lines without the paths of this machine and without progress."""
    for path, name in ((root / "out", "out"), (root, "damaged")):
        text = text.replace(str(path), name)
    return [line.strip() for line in text.splitlines() if line.strip() and not re.match(r"(prepare|read \w+) \d", line)]


def run(section: Section, fault: Fault | None, root: pathlib.Path, capsys) -> tuple[int, list[str]]:
    """The exit status of the section's command and the lines that it printed, stderr first."""
    section.make(root)
    if fault:
        fault.change(root)
    words = re.sub(r"\bdamaged\b", str(root), f"{section.command} {fault.flags if fault else ''}")
    words = words.replace("--output out", f"--output {root / 'out'}").replace("configs/", f"{ROOT}/configs/")
    capsys.readouterr()
    status = front_door.main(shlex.split(words))
    said = capsys.readouterr()
    return status, lines_of(said.err + "\n" + said.out, root)


def shown_line(fault: Fault, status: int, lines: list[str], usual: list[str]) -> str:
    """The line that the page shows: the finding of the fault's code, the error, the first warning, or nothing."""
    if fault.code:
        at = next(i for i, line in enumerate(lines) if re.match(f"(error|warning) {fault.code}: ", line))
        return f"{lines[at].partition(':')[0]}: {lines[at + 1]}"
    if fault.finds:
        return next(line for line in lines if fault.finds in line)
    if status:
        return next(line for line in lines if line.startswith("error: "))
    new = [line for line in lines if line not in usual]
    return next((line for line in new if re.match(r"warning|\d+ (images|objects|masks) (are|have)", line)), "")


def cell(text: str) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    code = re.search(rf" \[([a-z-]+): {PAGE}\]$", text)
    text = text[: code.start()] if code else text
    text = re.sub(r"\d+ bytes not processed", "N bytes not processed", text)  # of libjpeg's version
    text = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
    return (f"{text} **[{code[1]}]**" if code else text).replace("<", "&lt;") or "nothing: it is read as it is meant"


def table(section: Section, folder: pathlib.Path, capsys) -> str:
    status, usual = run(section, None, folder / "sound", capsys) if section.title != "Training on it" else (0, [])
    sound = section.title.startswith("Prediction")  # there is no model to predict with
    assert status == 0 or sound, usual
    rows = []
    for number, fault in enumerate(section.faults):
        status, lines = run(section, fault, folder / str(number), capsys)
        flags = f" (`{fault.flags}`)" if fault.flags else ""
        rows.append(f"| {fault.what}{flags} | {status} | {cell(shown_line(fault, status, lines, usual))} |")
    command = f"    python -m pfcn_jax.main {section.command}"
    return "\n".join(
        [f"## {section.title}", "", command, "", "| fault | status | it says |", "|---|---|---|", *rows, ""]
    )


def run_exported(folder: pathlib.Path, monkeypatch) -> str:
    """The script inside an exported model, which reads the image before the model."""
    deep_png(folder / "photo.png")
    monkeypatch.setattr(sys, "argv", ["run_exported.py", "model.pfcn", str(folder / "photo.png"), "segments.png"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "pfcn_jax/export/run_exported.py"), run_name="__main__")
    said = lines_of(str(caught.value.code), folder)[0]  # of a text Python makes status 1
    rows = [
        "| fault | status | it says |",
        "|---|---|---|",
        f"| an image of 16 bits a channel | 1 | {cell(said)} |",
        "",
    ]
    command = "    python run_exported.py model.pfcn damaged/photo.png segments.png"
    return "\n".join(["## An exported model", "", command, "", *rows])


def test_the_page_is_what_the_verbs_say(tmp_path, capsys, monkeypatch):
    tables = []
    for number, section in enumerate(SECTIONS):
        (tmp_path / str(number)).mkdir()
        tables.append(table(section, tmp_path / str(number), capsys))
    page = "\n".join([HEAD, *tables, run_exported(tmp_path, monkeypatch)])
    if os.environ.get("PFCN_WRITE_FAULTS"):
        FILE.write_text(page)
    assert FILE.read_text() == page
