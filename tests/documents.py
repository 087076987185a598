"""What the documents say, taken apart: commands, code, links and anchors of Markdown files. No test lives here."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import pathlib
import re
import shlex

from pfcn_jax.commands import module_of

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
DOOR = "python -m pfcn_jax.main"

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+(?:\([^()]*\)[^()\s]*)?)\)")


@dataclasses.dataclass(frozen=True)
class Command:
    """One call of the front door, as it stands in a document."""

    page: str
    text: str

    @property
    def argv(self) -> list[str]:
        """Its words after the module's name. Variables of the shell become nothing, or 0."""
        text = re.sub(r"\$\{\w+:-\}", "", self.text)
        return shlex.split(re.sub(r"\$\w+", "0", text), comments=True)


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def fences(text: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks."""
    return [(match[2], match[3]) for match in _FENCE.finditer(text)]


def indented(text: str) -> str:
    """The lines of indented blocks, without their four spaces."""
    lines = _FENCE.sub("", text).splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    "))


def spans(text: str) -> list[str]:
    """The inline code, on one line each."""
    return [" ".join(match[1].split()) for match in _SPAN.finditer(_FENCE.sub("", text))]


def commands(path: pathlib.Path) -> list[Command]:
    """Every call of the front door on a page: in fenced and indented blocks, and inline."""
    text = path.read_text()
    blocks = [content for language, content in fences(text) if language in ("", "bash", "sh")]
    found = [part for block in [*blocks, indented(text)] for part in shell_commands(block)]
    found += [span.removeprefix(DOOR) for span in spans(text) if span.startswith(DOOR)]
    return [Command(name_of(path), part.strip()) for part in found if part.split() != ["VERB", "--help"]]


def shell_commands(script: str) -> list[str]:
    """What follows the front door's name in a piece of shell, up to the end of the command."""
    joined = script.replace("\\\n", " ")
    return [match[1] for match in re.finditer(re.escape(DOOR) + r"([^;&|>\n]*)", joined)]


def links(path: pathlib.Path) -> list[str]:
    """Targets of links and images."""
    text = _FENCE.sub("", path.read_text())
    return _LINK.findall(re.sub(r"`[^`]*`(?!\]\()", "", text)) + re.findall(r'(?:src|href)="([^"]+)"', text)


def anchors(path: pathlib.Path) -> set[str]:
    """What `#...` may name on a page: its headings by GitHub's rule."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", _FENCE.sub("", path.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = sum(name == slug or re.fullmatch(re.escape(slug) + r"-\d+", name) is not None for name in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


@functools.cache
def parser_of(verb: str) -> argparse.ArgumentParser:
    """The flags of a verb."""
    module = importlib.import_module(module_of(verb))
    parser = argparse.ArgumentParser(prog=verb, allow_abbrev=False)
    module.add_flags(parser)
    return parser


@functools.cache
def options_of(verb: str) -> frozenset[str]:
    """Every `--flag` that a verb knows, those of its kinds (`prepare masks`) included."""

    def collect(parser: argparse.ArgumentParser) -> set[str]:
        found = set(parser._option_string_actions)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for inner in action.choices.values():
                    found |= collect(inner)
        return found

    return frozenset(collect(parser_of(verb)))
