"""Manual pages in roff's man macros (man-pages(7)): one for `cnimeta`, one for each command. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnimeta.cli.grammar.tree import Command, Option

STATUS = (
    ("0", "Done."),
    ("1", "Failed, or found fault."),
    ("2", "Wrong usage: an option, a value of one, or what is missing; nothing was done."),
    ("130", "Ended by Ctrl-C."),
)


def pages(root: Command, version: str) -> dict[str, str]:
    """The text of each page by its file name: `cnimeta.1`, `cnimeta-ports.1`."""
    found = {f"{root.words[0]}.1": _page(root, version)}
    for command in root.commands:
        found[f"{'-'.join(command.words)}.1"] = _page(command, version, root)
    return found


def _page(command: Command, version: str, above: Command | None = None) -> str:
    title = "-".join(command.words)
    parts = [
        f'.TH {_text(title).upper()} 1 "" {_string(f"cnimeta {version}")} "CNI plugins"',
        f".SH NAME\n{_text(title)} \\- {_text(command.about)}",
        ".SH SYNOPSIS",
        "\n.PP\n".join(_synopsis(one) for one in (command.walk() if above else [command])),
    ]
    if above is None:
        parts += [".SH COMMANDS", *(_listed(one) for one in command.commands)]
        parts += [".SH OPTIONS", *map(_option, command.options)]
    else:
        for one in command.walk():
            head = ".SH OPTIONS" if one is command else f".SH {_string(one.name.upper())}\n{_text(one.about)}."
            parts += [head, *map(_option, (*one.arguments, *one.options))]
    parts += [".SH EXIT STATUS", *(f".TP\n{status}\n{text}" for status, text in STATUS)]
    others = [one for one in (above.commands if above else command.commands) if one is not command]
    see = [*([above] if above else []), *others]
    parts.append(".SH SEE ALSO\n" + ",\n".join(f".BR {'-'.join(one.words)} (1)" for one in see).replace(",\n", " ,\n"))
    return "\n".join(parts) + "\n"


def _synopsis(command: Command) -> str:
    words = [f"\\fB{_text(command.name)}\\fR"]
    words += [f"[{_flag(option)}]" for option in command.options if option.flags and "--help" not in option.flags]
    for argument in command.arguments:
        text = f"\\fI{_text(argument.value)}\\fR"
        words.append(f"[{text}]" if argument.optional else text)
    if command.commands:
        words.append("\\fICOMMAND\\fR" if len(command.words) == 1 else "[\\fIACTION\\fR]")
    return "\n".join(words)


def _flag(option: Option) -> str:
    value = f" \\fI{_text(option.value)}\\fR" if option.value else ""
    return f"\\fB{_text(option.flags[-1])}\\fR{value}"


def _listed(command: Command) -> str:
    return f".TP\n.BR {'-'.join(command.words)} (1)\n{_text(command.about)}"


def _option(option: Option) -> str:
    names = ", ".join(f"\\fB{_text(flag)}\\fR" for flag in option.flags)
    value = f"\\fI{_text(option.value)}\\fR" if option.value else ""
    return f".TP\n{' '.join(part for part in (names, value) if part)}\n{_text(option.about)}"


def _text(text: str) -> str:
    """Text that roff shows as it is: nothing in it is a request or an escape."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("\n", " ")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


def _string(text: str) -> str:
    """An argument of a macro."""
    return '"' + _text(text).replace('"', "\\(dq") + '"'
