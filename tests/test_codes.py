"""Each code of an error has one line in docs/troubleshooting.md, each line is of a code in use, and people see both."""

from __future__ import annotations

import argparse
import ast
import pickle
import re

import pytest

from pfcn_jax import main as front_door
from pfcn_jax.data.example import DataError
from pfcn_jax.data.kinds import KINDS
from pfcn_jax.errors import PAGE, TryAgain, UserError
from tests.documents import ROOT

LINES = re.findall(r"^\| `([a-z-]+)` \| (.*) \| (.*) \|$", (ROOT / PAGE).read_text(), re.MULTILINE)


def used_codes() -> set[str]:
    """The kinds of data errors, the codes of classes of errors, and those given where one is raised."""
    found = set(KINDS)
    for path in (ROOT / "pfcn_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                given = [
                    part.value
                    for part in node.body
                    if isinstance(part, ast.Assign) and _name(part.targets[0]) == "code"
                ]
            elif isinstance(node, ast.Call) and _name(node.func).endswith(("Error", "TryAgain")):
                given = [part.value for part in node.keywords if part.arg in ("code", "kind")]
            else:
                continue
            found |= {value.value for value in given if isinstance(value, ast.Constant) and value.value}
    return found


def _name(node: ast.expr) -> str:
    return getattr(node, "id", "")


def test_each_code_has_its_line_and_no_line_is_unused():
    listed = [code for code, _, _ in LINES]
    assert len(listed) == len(set(listed))
    assert set(listed) == used_codes()


def test_the_page_says_what_each_kind_of_damage_means():
    assert {code: means for code, means, _ in LINES if code in KINDS} == {code: KINDS[code][1] for code in KINDS}


def fail(error: Exception) -> int:
    def run(args: argparse.Namespace) -> int:
        raise error

    return front_door.run(argparse.Namespace(run=run))


@pytest.mark.parametrize(
    ("error", "status", "end"),
    [
        (UserError("--x: no"), 2, "--x: no [usage: docs/troubleshooting.md]"),
        (UserError("a", code="disk"), 2, "a [disk: docs/troubleshooting.md]"),
        (TryAgain("busy"), 75, "busy [try-again: docs/troubleshooting.md]"),
        (DataError("b.png", kind="label-size"), 2, "b.png [label-size: docs/troubleshooting.md]"),
        (pickle.loads(pickle.dumps(DataError("b.png", kind="label-size"))), 2, "[label-size: docs/troubleshooting.md]"),
        (DataError("c"), 2, "c [unusable: docs/troubleshooting.md]"),
        (MemoryError(), 2, "[out-of-memory: docs/troubleshooting.md]"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
            2,
            "[out-of-memory: " + PAGE + "]",
        ),
        (
            ModuleNotFoundError("no", name="matplotlib.figure"),
            2,
            "pip install -e '.[plots]' [not-installed: " + PAGE + "]",
        ),
    ],
)
def test_messages_end_with_the_code_and_the_page(error, status, end, capsys):
    assert fail(error) == status
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.endswith(end + "\n") and len(said.splitlines()) == 1


def test_a_bug_keeps_its_traceback():
    for bug in (KeyError("x"), ModuleNotFoundError("no", name="numpy")):
        with pytest.raises(type(bug)):
            fail(bug)
