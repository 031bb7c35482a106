"""The kernel and the files as comparable lines: what is the plugins' and what is others'."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnimeta_plugins.portmap.locking import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable

SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"
_OURS = re.compile(r"cnimeta|CNI-|cni_hostport|hostport_alloc", re.IGNORECASE)
_MANAGED = {"nat", "filter", "mangle", "raw", "security"}  # iptables-nft's tables: iptables-save shows all of a rule
_COUNTERS = re.compile(r"\[\d+:\d+\]")
_BUILT_IN = re.compile(r":(PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) ACCEPT ")


@dataclass(frozen=True)
class Look:
    """One look at a node. Counters, handles and the order inside our own chains and maps are left out.

    `ours` and `files` are lines; `others` are others' rules in order; `settings` the kernel's settings that we touch.
    """

    ours: frozenset[str]
    others: tuple[str, ...]
    files: frozenset[str]
    settings: frozenset[str]

    def mentions(self, word: str) -> list[str]:
        """The lines of ours that have this very word: a container ID, an address."""
        pattern = re.compile(rf"(?<![\w.:-]){re.escape(word)}(?![\w.:-])")
        return sorted(line for line in self.ours | self.files if pattern.search(line))


def run(*command: str, stdin: str = "") -> str:
    """A program's output; its failure is an error of the test."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env={"PATH": SYSTEM})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def tables() -> dict[str, str]:
    """Every nftables table, `inet name`, with its listing."""
    found = {}
    for block in re.split(r"^(?=table )", run("nft", "-s", "list", "ruleset"), flags=re.MULTILINE):
        if block.startswith("table "):
            found[block.split(" {", 1)[0].removeprefix("table ")] = block
    return found


def managed(name: str) -> bool:
    """Whether it is a table of iptables-nft."""
    family, _, table = name.partition(" ")
    return family in ("ip", "ip6") and table in _MANAGED


def legacy_families() -> list[int]:
    """The families that have legacy tables."""
    found = []
    for family, name in ((4, "/proc/net/ip_tables_names"), (6, "/proc/net/ip6_tables_names")):
        with contextlib.suppress(FileNotFoundError), open(name, encoding="ascii") as file:
            if file.read().strip():
                found.append(family)
    return found


def saved(variant: str, family: int) -> str:
    """iptables-save."""
    return run(f"{'iptables' if family == 4 else 'ip6tables'}-{variant}-save")


def look(data_dir: str, *, flows: bool = False) -> Look:
    """Look at this process's network namespace, and at the files under `data_dir`."""
    ours: set[str] = set()
    others: list[str] = []
    listed = tables()
    for name, text in listed.items():
        if managed(name):
            continue
        (ours.update if _OURS.search(name) else others.extend)(_lines(name, text))
    saves = [("nft", family) for family, word in ((4, "ip "), (6, "ip6 ")) if _any_managed(listed, word)]
    for variant, family in [*saves, *(("legacy", family) for family in legacy_families())]:
        _read_save(saved(variant, family), f"{variant}{family}", ours, others)
    if flows:
        others += sorted(line.split("dst=", 1)[1] for line in run("conntrack", "-L", "-p", "udp").splitlines())
    return Look(frozenset(ours), tuple(others), frozenset(_files(data_dir)), frozenset(_settings()))


def _any_managed(listed: Iterable[str], word: str) -> bool:
    return any(managed(name) and name.startswith(word) for name in listed)


def _lines(table: str, text: str) -> list[str]:
    """`inet t chain c: rule`, one line a rule, an element, or a head."""
    found, holder = [], ""
    text = re.sub(r",\s*\n\s*", ", ", text)  # elements over several lines
    for line in text.splitlines()[1:]:
        word = line.strip()
        if word.endswith("{") and not word.startswith("elements"):
            holder = word.removesuffix(" {")
            found.append(f"{table} {holder}")
        elif word.startswith("elements = {"):
            body = word.removeprefix("elements = {").removesuffix("}")
            found += sorted(f"{table} {holder}: {item.strip()}" for item in body.split(", ") if item.strip())
        elif word not in ("", "}"):
            found.append(f"{table} {holder}: {word}")
    return found


def _read_save(text: str, label: str, ours: set[str], others: list[str]) -> None:
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(("#", "COMMIT")) or _BUILT_IN.match(line) or not line:
            continue
        elif _OURS.search(line):
            ours.add(f"{label} {table} {_COUNTERS.sub('', line)}")
        else:
            others.append(f"{label} {table} {_COUNTERS.sub('', line)}")


def _files(data_dir: str) -> list[str]:
    found = []
    for folder, _, names in os.walk(data_dir):
        for name in names if os.path.basename(folder) != FOLDER else ():  # locks are empty, and stay
            path = os.path.join(folder, name)
            if ".db" in name:  # what its pages still show is gone; its rows are what there is
                found += [f"{name}: {row}" for row in _rows(path)] if name.endswith(".db") else []
                continue
            with open(path, "rb") as file:
                found.append(f"{os.path.relpath(path, data_dir)}: {file.read().decode('utf-8', 'replace')}")
    return found


def _rows(path: str) -> list[str]:
    """The rows of a database, read from a copy: a reader of the file itself would change it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "copy")
        for end in ("", "-wal"):
            if os.path.exists(path + end):
                shutil.copyfile(path + end, copy + end)
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            return list(connection.iterdump())


def _settings() -> list[str]:
    found = []
    for path in glob.glob("/proc/sys/net/ipv4/conf/*/route_localnet"):
        with open(path, encoding="ascii") as file:
            value = file.read().strip()
        if value != "0":  # an interface that came meanwhile is no change
            found.append(f"{path.removeprefix('/proc/sys/')} = {value}")
    return found
