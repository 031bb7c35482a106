"""Completion for bash, zsh and fish: each shell's own script, complete in itself, so that no key starts Python. Pure.

All three go the same way: the words before the cursor lead to a command (options are passed over), and that has
commands, options and kinds of values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnimeta.cli.grammar.tree import FILES, FOLDERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cnimeta.cli.grammar.tree import Command, Option

SHELLS = ("bash", "zsh", "fish")


def script(shell: str, root: Command) -> str:
    """The script for one of SHELLS."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](root)


def _kind(option: Option) -> str:
    """What its values are: `words …`, `files`, `folders`, or nothing that could be completed."""
    if option.choices:
        return "words " + " ".join(option.choices)
    return "files" if option.value in FILES else "folders" if option.value in FOLDERS else "none"


def _valued(root: Command) -> Iterator[tuple[Command, Option]]:
    """Every option that takes a value."""
    for command in root.walk():
        yield from ((command, option) for option in command.options if option.value)


def _flags(command: Command) -> list[str]:
    return [flag for option in command.options for flag in option.flags]


# --- bash


def _bash(root: Command) -> str:
    return f"""# bash completion for cnimeta. Written by `cnimeta completion bash`.
_cnimeta() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} at={root.name!r} word kind='' words=''
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$at $word" in
{_bash_commands(root)}
    esac
  done
  case "$at:$before" in
{_bash_values(root)}
    *) case "$at" in
{_bash_words(root)}
    esac ;;
  esac
  COMPREPLY=()
  case "$kind" in
    files) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    folders) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
    words) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current") ;;
  esac
  if [[ $kind == files && $current == -* ]]; then mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current"); fi
}}
complete -F _cnimeta cnimeta
"""


def _bash_commands(root: Command) -> str:
    names = [command.name for command in root.walk() if command is not root]
    return f'      {"|".join(map(repr, names))}) at="$at $word" ;;'


def _bash_values(root: Command) -> str:
    return "\n".join(
        f"    {'|'.join(repr(f'{command.name}:{flag}') for flag in option.flags)}) {_bash_set(_kind(option))} ;;"
        for command, option in _valued(root)
    )


def _bash_set(kind: str) -> str:
    name, _, words = kind.partition(" ")
    return f"kind={name} words={words!r}" if words else f"kind={name}"


def _bash_words(root: Command) -> str:
    lines = []
    for command in root.walk():
        words, kind = _next_words(command)
        lines.append(f"      {command.name!r}) kind={kind} words={' '.join(words)!r} ;;")
    return "\n".join(lines)


def _next_words(command: Command) -> tuple[list[str], str]:
    """What can come next, and whether files can too."""
    words = [inner.words[-1] for inner in command.commands]
    words += [choice for argument in command.arguments for choice in argument.choices]
    kinds = {_kind(argument) for argument in command.arguments}
    return words + _flags(command), "files" if "files" in kinds else "words"


# --- zsh


def _zsh(root: Command) -> str:
    return f"""#compdef cnimeta
# zsh completion for cnimeta. Written by `cnimeta completion zsh`.
_cnimeta() {{
  local at={_quoted(root.name)} word
  local -a found
  for word in "${{(@)words[2,CURRENT-1]}}"; do
    case "$at $word" in
      ({"|".join(_quoted(command.name) for command in root.walk() if command is not root)}) at="$at $word" ;;
    esac
  done
  case "$at:${{words[CURRENT-1]}}" in
{_zsh_values(root)}
    (*) case "$at" in
{_zsh_words(root)}
    esac ;;
  esac
}}
if [[ ${{zsh_eval_context[-1]}} == loadautofunc ]]; then _cnimeta "$@"; else compdef _cnimeta cnimeta; fi
"""


def _zsh_values(root: Command) -> str:
    return "\n".join(
        f"    ({'|'.join(_quoted(f'{command.name}:{flag}') for flag in option.flags)}) {_zsh_kind(_kind(option))} ;;"
        for command, option in _valued(root)
    )


def _zsh_kind(kind: str) -> str:
    name, _, words = kind.partition(" ")
    return {"files": "_files", "folders": "_files -/", "none": "_message value"}.get(name, f"compadd -- {words}")


def _zsh_words(root: Command) -> str:
    lines = []
    for command in root.walk():
        found = _zsh_array([(inner.words[-1], inner.about) for inner in command.commands])
        found += _zsh_array([(choice, "") for argument in command.arguments for choice in argument.choices])
        flags = _zsh_array([(flag, option.about) for option in command.options for flag in option.flags])
        files = " _files;" if any(_kind(argument) == "files" for argument in command.arguments) else ""
        tell = f"found=({found}); _describe command found;" if found else ""
        lines.append(f"      ({_quoted(command.name)}) {tell}{files} found=({flags}); _describe -o option found ;;")
    return "\n".join(lines)


def _zsh_array(entries: Sequence[tuple[str, str]]) -> str:
    """Words with what is said of them, as _describe takes them: a colon between."""
    return " ".join(_quoted(word.replace(":", "\\:") + (f":{about}" if about else "")) for word, about in entries)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish


def _fish(root: Command) -> str:
    return f"""# fish completion for cnimeta. Written by `cnimeta completion fish`.
function __cnimeta_at
    set -l at {_fish_quoted(root.name)}
    set -l tokens (commandline -opc)
    for word in $tokens[2..-1]
        switch "$at $word"
            case {" ".join(_fish_quoted(command.name) for command in root.walk() if command is not root)}
                set at "$at $word"
        end
    end
    test "$at" = "$argv"
end
complete -c cnimeta -f
{chr(10).join(_fish_lines(root))}
"""


def _fish_lines(root: Command) -> Iterator[str]:
    for command in root.walk():
        here = f"complete -c cnimeta -n {_fish_quoted(f'__cnimeta_at {command.name}')}"
        for inner in command.commands:
            yield f"{here} -a {_fish_quoted(inner.words[-1])} -d {_fish_quoted(inner.about)}"
        for argument in command.arguments:
            yield f"{here}{_fish_values(argument)} -d {_fish_quoted(argument.about)}"
        for option in command.options:
            flags = "".join(f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}" for flag in option.flags)
            alone = "r" if _kind(option) == "files" else "x"  # what `complete -f` rules out, -F lets in again
            values = f" -{alone}{_fish_values(option)}" if option.value else ""
            yield f"{here}{flags}{values} -d {_fish_quoted(option.about)}"


def _fish_values(option: Option) -> str:
    kind, _, words = _kind(option).partition(" ")
    if kind == "words":
        return f" -a {_fish_quoted(words)}"
    return {"files": " -F", "folders": " -a '(__fish_complete_directories)'"}.get(kind, "")


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
