"""`cnimeta explain WORD`: what a key, a plugin or an error code means. Looks at nothing of the node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cnimeta.errors import InvalidEnvironment, shown
from cnimeta.terminal.colour import painted
from cnimeta.terminal.table import table, width

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection

    from cnimeta.node.explained import Code, Told
    from cnimeta.plugin.base import Commands


def add_commands(commands: Commands) -> None:
    """Add `explain`."""
    about = "say what a key of a configuration or an error code means"
    parser = commands.add_parser("explain", help=about, description=about)
    parser.add_argument(
        "word", nargs="?", metavar="WORD", help="a key, PLUGIN.KEY, a plugin, or a code; default: all there are"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_explain)


def _explain(args: argparse.Namespace) -> int:
    from cnimeta.node.explained import codes, keys, matching
    from cnimeta.node.networks import loadable

    word = args.word or ""
    number = word.removeprefix("code").strip()
    chosen_codes = [
        code for code in codes() if not word or str(code.code) == number or code.name.lower() == word.lower()
    ]
    plugins = {} if number.isdigit() else loadable()
    known = [] if number.isdigit() else keys(plugins)
    chosen_keys = matching(word, known) if word else known
    if not chosen_codes and not chosen_keys:
        raise InvalidEnvironment(unknown(word, known, plugins))
    if args.json:
        body = {"keys": [_body(told) for told in chosen_keys], "codes": [code._asdict() for code in chosen_codes]}
        print(json.dumps(body, indent=2))
    elif word and word not in {told.plugin for told in chosen_keys}:
        print("\n\n".join([*map(_key, chosen_keys), *map(_code, chosen_codes)]))
    else:
        _print_tables(chosen_keys, chosen_codes)
    return 0


def unknown(word: str, known: list[Told], plugins: Collection[str]) -> str:
    """What is said of a word that no key and no code is called by."""
    from cnimeta.node.explained import near

    if word in plugins:
        return f"the plugin {word} is installed, and describes no keys of its own"
    found = near(word.rpartition(".")[2], known)
    hint = f": did you mean {' or '.join(found)}?" if found else "; without a word everything is listed"
    return f"nothing is known of {shown(word)}{hint}"


def _body(told: Told) -> dict[str, object]:
    return {"plugin": told.plugin, **told.key._asdict()}


def _key(told: Told) -> str:
    key = told.key
    head = painted(", ".join(key.names), "strong")
    return _plain(f"{head} ({told.plugin})\n  {key.about}\n  values: {key.form}; default: {key.default}")


def _code(code: Code) -> str:
    head = painted(f"{code.code}", "strong")
    return _plain(f"{head} {code.name}\n  {code.about}\n  what to do: {code.remedy}")


def _plain(text: str) -> str:
    """Without the marks that the documents need."""
    return text.replace("`", "")


def _print_tables(keys: list[Told], codes: list[Code]) -> None:
    rows = [[told.plugin, ", ".join(told.key.names), *map(_plain, (told.key.default, told.key.about))] for told in keys]
    if rows:
        print(table(("PLUGIN", "KEY", "DEFAULT", "MEANING"), rows, width()), end="")
    rows = [[str(code.code), code.name, code.about] for code in codes]
    if rows:
        print(table(("CODE", "ERROR", "MEANING"), rows, width()), end="")
