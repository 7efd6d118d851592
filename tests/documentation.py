"""The pages of the documentation, their code blocks, and the commands that there are to write about."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import typer.main

import coordinator.cli
import node.cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "scenarios").rglob("*.md"), *(ROOT / "docs").glob("*.md")])
PROGRAMS = {"locum": coordinator.cli, "locum-node": node.cli}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and what the comment before it says."""

    language: str
    text: str
    steer: list[str]

    @property
    def lines(self) -> list[str]:
        """The lines, continued ones joined."""
        return self.text.replace("\\\n", "").splitlines()

    @property
    def commands(self) -> list[list[str]]:
        """The words of every command; in a console block those are the lines with a `$`."""
        typed = [line.removeprefix("$ ") for line in self.lines if self.language == "bash" or line.startswith("$ ")]
        return [words for line in typed if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"(?:<!-- test: (.*?) -->\n)?^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)
    return [Block(language, text, shlex.split(steer)) for steer, language, text in found]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command of both programs."""
    for program, module in PROGRAMS.items():
        group = typer.main.get_command(module.app)
        assert isinstance(group, click.Group)
        for name, command in group.commands.items():
            yield f"{program} {name}", command
