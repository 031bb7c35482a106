"""Write the pages of docs/reference that are made from the code; a test says when one is out of date.

python docs/site/generate.py
"""

from __future__ import annotations

import json
from pathlib import Path

from cnimeta.cli.grammar.tree import Option, read
from cnimeta.cli.main import build_parser
from cnimeta.node.explained import codes
from cnimeta.node.networks import loadable
from cnimeta.node.schema import of_lists, of_plugin

FOLDER = Path(__file__).parents[1] / "reference"
PLUGINS = ("bandwidth", "hostport_alloc", "portmap")
NOTE = "<!-- Made from the code by docs/site/generate.py: change it there. -->\n"


def pages() -> dict[str, str]:
    """The text of each page by its name."""
    plugins = loadable()
    schemas = {name: of_plugin(name, plugins[name]) for name in PLUGINS}
    schemas["conflist"] = of_lists({name: plugins[name] for name in PLUGINS})
    texts = {f"schema/{name}.json": json.dumps(body, indent=2, ensure_ascii=False) for name, body in schemas.items()}
    return {"errors.md": errors(), "command.md": command(), **{name: text + "\n" for name, text in texts.items()}}


def errors() -> str:
    """Every error code, as `cnimeta explain` tells of it."""
    rows = [f"| {code.code} | {code.name} | {cell(code.about)} | {cell(code.remedy)} |" for code in codes()]
    head = ["| code | name | meaning | what to do |", "|---|---|---|---|"]
    text = 'A plugin that fails prints `{"code": …, "msg": …}`; `cnimeta explain CODE` says what this table says.\n'
    return "\n".join(["# Error codes", "", NOTE, text, *head, *rows, ""])


def command() -> str:
    """Every command with its options, as `--help` and the manual pages have them."""
    about = "[cli.md](../cli.md) explains them; this is what the parser knows."
    found = ["# Every command and option", "", NOTE, about, ""]
    for one in read(build_parser(), "cnimeta").walk():
        found += [f"## {one.name}", "", f"{sentence(one.about)}", ""]
        if one.arguments or one.options:
            found += ["| argument | meaning |", "|---|---|"]
            found += [f"| {written(option)} | {cell(option.about)} |" for option in (*one.arguments, *one.options)]
            found.append("")
    return "\n".join(found)


def written(option: Option) -> str:
    """`-o`, `--output FORM`"""
    names = list(option.flags) or [option.value]
    if option.flags and option.value:
        names[-1] += f" {option.value}"
    return ", ".join(f"`{cell(name)}`" for name in names)


def cell(text: str) -> str:
    """Text in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def sentence(text: str) -> str:
    """`Look at it.`"""
    return text[:1].upper() + text[1:] + "." if text else ""


if __name__ == "__main__":
    (FOLDER / "schema").mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, "utf-8")
        print(FOLDER / name)
