"""The commands as values, read from the argparse parser."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = ("FILE", "PATH")
FOLDERS = ("DIR", "DIR[:DIR]")
"""The metavars whose values a shell completes by what lies on the disk."""


class Option(NamedTuple):
    """An option, or (without flags) an argument."""

    flags: tuple[str, ...]
    value: str
    """The metavar; empty for an option that takes none."""
    about: str
    choices: tuple[str, ...] = ()
    optional: bool = False
    """An argument that may be left out."""


class Command(NamedTuple):
    """A command and what it takes."""

    words: tuple[str, ...]
    """`cnimeta`, `ports`, `list`"""
    about: str
    options: tuple[Option, ...] = ()
    arguments: tuple[Option, ...] = ()
    commands: tuple[Command, ...] = ()

    @property
    def name(self) -> str:
        """`cnimeta ports list`"""
        return " ".join(self.words)

    def walk(self) -> Iterator[Command]:
        """Itself and all below it, in order."""
        yield self
        for command in self.commands:
            yield from command.walk()


def read(parser: argparse.ArgumentParser, *words: str, about: str = "") -> Command:
    """The command that a parser is for. `words`: how it is called, all of it."""
    options: list[Option] = []
    arguments: list[Option] = []
    commands: list[Command] = []
    formatter = parser.formatter_class(prog=parser.prog)
    for action in parser._actions:  # noqa: SLF001 - argparse shows them to nobody else
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
            commands += [read(inner, *words, name, about=helps.get(name, "")) for name, inner in action.choices.items()]
        elif action.help != argparse.SUPPRESS:
            (options if action.option_strings else arguments).append(_option(action, formatter))
    return Command(words, (parser.description or about).rstrip("."), tuple(options), tuple(arguments), tuple(commands))


def _option(action: argparse.Action, formatter: argparse.HelpFormatter) -> Option:
    choices = tuple(str(choice) for choice in action.choices or ())
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    value = metavar or (f"{{{','.join(choices)}}}" if choices else action.dest.upper().replace("_", "-"))
    about = formatter._expand_help(action) if action.help else ""  # noqa: SLF001 - as --help has it
    takes = action.nargs != 0
    return Option(tuple(action.option_strings), value if takes else "", about, choices, action.nargs in ("?", "*"))
