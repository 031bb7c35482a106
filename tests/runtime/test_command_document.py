"""docs/cli.md names every command, action and option, and only those."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cnimeta.cli.main import build_parser

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.project

TEXT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def words(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every option and sub-command, at any depth."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield name
                yield from words(inner)
        yield from (option for option in action.option_strings if option not in ("-h", "--help"))


def test_everything_is_in_the_document_when_the_parser_knows_it() -> None:
    known = set(words(build_parser()))
    assert {"run", "--capability-args", "repair", "--unwrap"} <= known
    assert {word for word in known if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", TEXT)} == set()


def test_the_parser_knows_every_option_when_the_document_names_it() -> None:
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT)) - {"--help"} <= set(words(build_parser()))


def test_every_example_is_understood_when_it_is_parsed() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    assert len(lines) > 10
    import shlex

    for line in lines:
        (here,) = re.findall(r"(?:^| -- |<\()cnimeta ([^|>)]*)", line)  # in a Pod, or for the shell to read, too
        build_parser().parse_args(shlex.split(here, comments=True))


def test_own_commands_are_known_by_name_when_only_one_is_loaded() -> None:
    """With a plugin's command nothing of this package's is loaded, and the other way round."""
    from cnimeta.cli.main import OWN

    of_nobody, of_plugins = build_parser(), build_parser("ports")
    assert set(OWN) == commands(of_nobody) - commands(of_plugins)
    assert commands(build_parser("version")) == set(OWN)


def commands(parser: argparse.ArgumentParser) -> set[str]:
    """The sub-commands of a parser."""
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return set(found.choices)
