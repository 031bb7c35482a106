"""What is made from the parser: completion in the real shells, manual pages judged by mandoc."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest

from cnimeta.cli.grammar.completion import SHELLS, script
from cnimeta.cli.grammar.man import pages
from cnimeta.cli.grammar.tree import Command, Option, read
from cnimeta.cli.main import build_parser, main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Complete = Callable[[str], set[str]]

pytestmark = pytest.mark.runtime

ROOT = read(build_parser(), "cnimeta")


def run(*words: str, stdin: str = "", folder: str = "/") -> str:
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, cwd=folder, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_bash(text: str, line: str, folder: str) -> set[str]:
    words = line.split(" ")
    ask = f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; _cnimeta"
    return set(run("bash", "-euc", f'{text}\n{ask} || true; printf "%s\\n" "${{COMPREPLY[@]}}"', folder=folder).split())


def in_zsh(text: str, line: str, folder: str) -> set[str]:
    """The completion function itself, with what it hands to the shell printed."""
    words = line.split(" ")
    kit = r"""
compdef() { : }
compadd() { [[ $1 == -- ]] && shift; print -rl -- $@ }
_files() { if [[ $1 == -/ ]]; then print -rl -- *(N/); else print -rl -- *(N); fi }
_message() { : }
_describe() { local name=${@[-1]}; print -rl -- ${${(P)name}%%:*} }
"""
    ask = f"words=({' '.join(map(shlex.quote, words))}); CURRENT={len(words)}; _cnimeta"
    found = run("zsh", "-f", stdin=f"{kit}\n{text}\n{ask}\n", folder=folder).split("\n")
    return {word for word in found if word and word.startswith(words[-1])}


def in_fish(text: str, line: str, folder: str) -> set[str]:
    found = run("fish", "--no-config", stdin=f"{text}\ncomplete -C {shlex.quote(line)}\n", folder=folder)
    return {line.partition("\t")[0].rstrip("/") for line in found.splitlines()}


SHELL = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, tmp_path: Path) -> Complete:
    (tmp_path / "a.conflist").touch()
    (tmp_path / "folder").mkdir()
    text = script(request.param, ROOT)
    return lambda line: SHELL[request.param](text, line, str(tmp_path))


def test_commands_and_actions_are_completed_when_a_word_begins(complete: Complete) -> None:
    assert {"ports", "wrap", "doctor", "install"} <= complete("cnimeta ")
    assert complete("cnimeta unin") == {"uninstall"}
    assert {"list", "top", "show", "check"} <= complete("cnimeta ports ")
    assert complete("cnimeta ports rel") == {"release"}
    assert complete("cnimeta run che") == {"check"}
    assert complete("cnimeta completion z") == {"zsh"}


def test_options_are_those_of_the_command_when_a_dash_begins(complete: Complete) -> None:
    assert {"--namespace", "--watch"} <= complete("cnimeta ports list --")
    assert "--watch" not in complete("cnimeta ports check --")
    assert complete("cnimeta ports --json show --bin") == {"--bin-dir"}
    assert complete("cnimeta wrap --unw") == {"--unwrap"}


def test_values_are_completed_when_an_option_takes_one(complete: Complete) -> None:
    assert complete("cnimeta ports list --output ") == {"table", "wide", "json", "yaml", "name"}
    assert complete("cnimeta ports list -o ya") == {"yaml"}
    assert complete("cnimeta wrap --policy req") == {"required"}
    assert {"a.conflist", "folder"} <= complete("cnimeta ports --conf ")
    assert "folder" in complete("cnimeta install --bin-dir ")
    assert "a.conflist" not in complete("cnimeta install --bin-dir ")
    assert "a.conflist" in complete("cnimeta wrap a")
    assert complete("cnimeta ports top --count ") <= {""}


@pytest.mark.parametrize("shell", SHELLS)
def test_nothing_is_run_when_a_help_text_has_quotes(shell: str, tmp_path: Path) -> None:
    nasty = 'it\'s `touch hit` $(touch hit) "x" \\ %s :colon'
    root = Command(
        ("cnimeta",),
        nasty,
        (Option(("--odd",), "X", nasty, ("one", "two")),),
        (),
        (Command(("cnimeta", "sub"), nasty),),
    )
    found = SHELL[shell](script(shell, root), "cnimeta ", str(tmp_path))
    assert "sub" in found
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize(("name", "text"), pages(ROOT, "1.2.3").items())
def test_mandoc_finds_nothing_wrong_when_it_reads_a_page(name: str, text: str) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning"], input=text, capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert not complaints, name


def test_a_page_has_every_option_with_its_text_when_it_is_rendered() -> None:
    texts = {
        name: run("mandoc", "-T", "utf8", "-O", "width=200", stdin=text) for name, text in pages(ROOT, "1").items()
    }
    for command in ROOT.commands:
        shown = " ".join(texts[f"{'-'.join(command.words)}.1"].replace("\b", "").split())
        plain = _without_overstrikes(texts[f"{'-'.join(command.words)}.1"])
        assert shown
        for one in command.walk():
            for option in (*one.options, *one.arguments):
                assert " ".join(option.about.split()) in plain, (one.name, option)
                assert all(flag in plain for flag in option.flags)


def _without_overstrikes(text: str) -> str:
    found: list[str] = []
    for character in text:
        if character == "\b":
            found.pop()
        else:
            found.append(character)
    return " ".join("".join(found).split())


def test_lines_that_begin_like_requests_are_text_when_they_are_rendered() -> None:
    root = Command(("x",), ".so /etc/passwd", (), (), (Command(("x", "y"), "'br \\fB-z\\n(.z"),))
    assert ".so /etc/passwd" in _without_overstrikes(run("mandoc", "-T", "utf8", stdin=pages(root, "1")["x.1"]))
    assert "'br \\fB-z\\n(.z" in _without_overstrikes(run("mandoc", "-T", "utf8", stdin=pages(root, "1")["x-y.1"]))


def test_pages_are_written_and_printed_when_they_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["man", "--output", str(tmp_path / "man1")]) == 0
    capsys.readouterr()
    assert main(["man", "wrap"]) == 0
    assert capsys.readouterr().out == (tmp_path / "man1" / "cnimeta-wrap.1").read_text()
    assert {path.name for path in (tmp_path / "man1").iterdir()} == set(pages(ROOT, "1"))
    assert main(["man", "nothing"]) == 2
    with pytest.raises(SystemExit) as ended:
        main(["completion", "powershell"])
    assert ended.value.code == 2


def test_every_command_says_what_it_does_when_its_help_is_read() -> None:
    for command in ROOT.walk():
        assert command.about, command.name
        assert not [option for option in (*command.options, *command.arguments) if not option.about], command.name
