"""The legacy iptables (ip_tables), changed with python-iptables.

The kernel replaces a whole table at once, so every writer must hold /run/xtables.lock from reading to writing;
python-iptables takes no lock, hence `held()`. What else it needs:

* libxtables ends the process on errors it cannot return, and can serve one address family per process (its NAT targets
  register for the first one only). So each commit runs in a forked child: nothing is started, nothing outlives it.
* Importing it starts 26 programs (ldconfig, gcc, ld) to find four libraries; here the dynamic linker is asked instead.

What python-iptables cannot express (an extension it does not know in conditionsV4/V6), or a host without its
libraries, is left to one `iptables-legacy-restore --noflush -w` batch.
"""

from __future__ import annotations

import os
import sys

from cnimeta.host.iptables.lock import XtablesLock
from cnimeta.host.iptables.programs import program, run
from cnimeta.host.iptables.values import BUILT_IN, NAT, Change, Refused, Table, by_table, filtered, render, split
from cnimeta.host.iptables.variant import holds, loaded_tables
from cnimeta.host.lifeline import Lifeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import ModuleType

DONE, REFUSED, UNABLE = 0, 3, 4
_LIBRARIES = {"ip4tc": "libip4tc.so.2", "ip6tc": "libip6tc.so.2", "xtables": "libxtables.so.12", "c": "libc.so.6"}
_HEADS = {
    "-s": "src",
    "--source": "src",
    "--src": "src",
    "-d": "dst",
    "--destination": "dst",
    "--dst": "dst",
    "-p": "protocol",
    "--protocol": "protocol",
    "--proto": "protocol",
    "-i": "in_interface",
    "--in-interface": "in_interface",
    "-o": "out_interface",
    "--out-interface": "out_interface",
}


class Inexpressible(Exception):
    """A rule that python-iptables cannot build."""


class LegacyIptables:
    """The Iptables adapter of hosts whose iptables is the legacy one."""

    variant = "legacy"

    def __init__(
        self,
        path: str = "",
        lock: XtablesLock | None = None,
        in_child: Callable[[Callable[[], None]], tuple[int, str]] | None = None,
    ) -> None:
        self.path = path
        self._lock = lock or XtablesLock()
        self._in_child = in_child or run_in_child
        self._seen: dict[tuple[int, str], dict[str, list[str]]] | None = None

    def held(self) -> AbstractContextManager[None]:
        """The xtables lock: hold it around reading and committing. What is read under it is read once."""
        return _Held(self)

    def enter(self, holding: bool) -> None:
        """Take or let go the lock, and what was read with it."""
        self._seen = None
        if holding:
            self._lock.__enter__()
            self._seen = {}
        else:
            self._lock.__exit__()

    def used(self, family: int) -> bool:
        """Whether the nat table is loaded in this network namespace."""
        return "nat" in loaded_tables(family)

    def chain(self, family: int, name: str, mentioning: tuple[str, ...] = ()) -> list[str] | None:
        """The rules of one chain, None when there is no such chain."""
        found = self.read(family).get(name)
        return None if found is None else filtered(found, mentioning)

    def has_rules(self, family: int, name: str) -> bool:
        """Whether the chain is there and has a rule."""
        return bool(self.chain(family, name))

    def has_chain(self, family: int, name: str, table: str = NAT) -> bool:
        """Whether the chain is there."""
        return name in self.read(family, table)

    def read(self, family: int, table: str = NAT) -> dict[str, list[str]]:
        """A whole table; empty when it is not loaded in this network namespace."""
        if table not in loaded_tables(family):
            return {}
        if self._seen is not None and (family, table) in self._seen:
            return self._seen[family, table]
        chains = Table.parse(run([program(family, self.variant, "-save", self.path), "-t", table])).chains
        if self._seen is not None:
            self._seen[family, table] = chains
        return chains

    def commit(self, family: int, changes: Sequence[Change]) -> None:
        """Apply all changes of a table at once; the caller holds the lock."""
        for table, ordered in by_table(changes).items():
            try:
                self._commit(family, table, ordered)
            finally:
                if self._seen is not None:
                    self._seen.pop((family, table), None)

    def _commit(self, family: int, table: str, changes: Sequence[Change]) -> None:
        try:
            steps = self._located(family, table, changes)
            if all(change.action == "require" for change in changes):
                return
            status, complaint = self._in_child(lambda: _apply(family, table, steps))
        except (Inexpressible, ImportError, OSError):  # refused: the program does it
            status, complaint = UNABLE, ""
        if status == DONE:
            return
        if status == REFUSED:
            raise Refused(f"the legacy iptables refused: {complaint}")
        self._restore(family, changes)

    def has_rule(self, family: int, chain: str, rule: str) -> bool:
        """What `iptables -C` says; not under `held()`, the program takes the lock itself."""
        return holds(family, self.variant, self.path, chain, rule)

    def _located(self, family: int, table: str, changes: Sequence[Change]) -> list[tuple[Change, int]]:
        """Each change with the place of its rule; what `iptables-restore` would refuse is refused."""
        chains = self.read(family, table)
        after = Table({name: list(chains.get(name, ())) for name in (chains or BUILT_IN[table])})
        return [(change, after.apply(change)) for change in changes]

    def _restore(self, family: int, changes: Sequence[Change]) -> None:
        """The program takes the lock itself, so it is let go meanwhile; the batch checks what it meets."""
        self._lock.__exit__()
        try:
            run([program(family, self.variant, "-restore", self.path), "--noflush", "-w"], render(changes))
        finally:
            self._lock.__enter__()


class _Held:
    def __init__(self, tables: LegacyIptables) -> None:
        self._tables = tables

    def __enter__(self) -> None:
        self._tables.enter(holding=True)

    def __exit__(self, *_: object) -> None:
        self._tables.enter(holding=False)


def run_in_child(work: Callable[[], None]) -> tuple[int, str]:
    """Run `work` in a forked child; its outcome and what it said. A child that libxtables ended was UNABLE."""
    import_iptc()
    lifeline, parent = Lifeline(), os.getpid()
    try:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _be_child(work, theirs, lambda: lifeline.follow(parent))
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            said = pipe.read().decode("utf-8", "replace")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        lifeline.close()
    return (code if code in (DONE, REFUSED) else UNABLE), said


def _be_child(work: Callable[[], None], report: int, follow: Callable[[], None]) -> None:
    """Never returns, never touches the parent's stdout, dies with the parent."""
    status = UNABLE
    try:
        follow()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        work()
        status = DONE
    except Refused as error:
        status = REFUSED
        os.write(report, error.msg.encode())
    except BaseException:  # noqa: BLE001 - then: the program does what this child could not
        status = UNABLE
    finally:
        os._exit(status)


def import_iptc() -> ModuleType:
    """python-iptables, imported without the programs it would start. Raises ImportError without its libraries."""
    if "iptc" in sys.modules:
        return sys.modules["iptc"]
    import ctypes.util

    original = ctypes.util.find_library
    extensions = next(_extension_folders(), None)
    given = os.environ.get("XTABLES_LIBDIR")

    def find_library(name: str) -> str | None:
        library = _LIBRARIES.get(name.removeprefix("lib"))
        if library is None:
            return None
        try:
            ctypes.CDLL(library)
        except OSError:  # unknown: the slow search tells
            return original(name)
        return library

    try:
        ctypes.util.find_library = find_library
        if given is None and extensions is not None:
            os.environ["XTABLES_LIBDIR"] = extensions
        import iptc
        import iptc.xtables

        module: ModuleType = iptc
        return module
    except Exception as error:  # noqa: BLE001 - it raises what it likes: XTablesError, AttributeError, OSError
        raise ImportError(f"python-iptables: {error}") from None
    finally:
        ctypes.util.find_library = original
        if given is None:
            os.environ.pop("XTABLES_LIBDIR", None)


def _extension_folders() -> Iterator[str]:
    """Where libxtables' extensions are, by the multiarch and the plain layout."""
    libraries = ["/usr/lib", "/usr/lib64", "/lib", "/usr/local/lib"]
    triplet = getattr(sys.implementation, "_multiarch", "")
    if triplet:
        libraries.insert(0, f"/usr/lib/{triplet}")
    for folder in libraries:
        if os.path.isdir(f"{folder}/xtables"):  # unknown: libxtables looks where it was built to
            yield f"{folder}/xtables"


def _apply(family: int, name: str, steps: Sequence[tuple[Change, int]]) -> None:
    """Build every rule, change the table, commit. Runs in the child."""
    iptc = import_iptc()
    cls = iptc.Table if family == 4 else iptc.Table6
    table = cls(name, autocommit=False)
    for change, place in steps:
        chain = change.chain
        if change.action == "new":
            table.create_chain(chain)
        elif change.action == "flush":
            table.flush_entries(chain)
        elif change.action == "remove":
            table.delete_chain(chain)
        elif change.action == "append":
            iptc.Chain(table, chain).append_rule(_rule(iptc, family, change.rule))
        elif change.action == "insert":
            iptc.Chain(table, chain).insert_rule(_rule(iptc, family, change.rule), 0)
        elif change.action == "delete":
            _delete(table, chain, place)
    try:
        table.commit()
    except iptc.IPTCError as error:
        raise Refused(str(error)) from None


def _delete(table: object, chain: str, place: int) -> None:
    """By place, under the lock: python-iptables' own delete_rule takes the first rule that looks alike."""
    import ctypes

    calls, handle = getattr(table, "_iptc"), getattr(table, "_handle")  # noqa: B009 - there is no public name
    if calls.iptc_delete_num_entry(chain.encode(), ctypes.c_uint(place), handle) != 1:
        raise Refused(f"rule {place + 1} of chain {chain} cannot be deleted")


def _rule(iptc: ModuleType, family: int, text: str) -> object:
    """The rule python-iptables makes of an `iptables-save` line. Raises Inexpressible."""
    heads, parts = parse_rule(text)
    rule = iptc.Rule() if family == 4 else iptc.Rule6()
    for name, value in heads:
        setattr(rule, name, value)
    for kind, name, options in parts:
        module = rule.create_target(name) if kind == "target" else rule.create_match(name)
        for option, values, inverted in options:
            if inverted and len(values) > 1:
                raise Inexpressible(text)
            value = "".join(values)
            if inverted:
                module.set_parameter(option, f"!{value}")
            else:
                module.set_parameter(option, value if len(values) < 2 else list(values))
    return rule


Option = tuple[str, tuple[str, ...], bool]
"""A parameter of an extension: its name, its values, whether `!` stands before it."""


def parse_rule(text: str) -> tuple[list[tuple[str, str]], list[tuple[str, str, list[Option]]]]:
    """A rule taken apart: its heads (src, dst, protocol, interfaces) and its extensions in order, the target last.

    Raises Inexpressible for what has no place in these.
    """
    heads: list[tuple[str, str]] = []
    parts: list[tuple[str, str, list[Option]]] = []
    target: tuple[str, str, list[Option]] | None = None
    words, inverted = split(text), False
    while words:
        word = words.pop(0)
        if word == "!":
            inverted = True
            continue
        if word in _HEADS and words:
            heads.append((_HEADS[word], ("!" if inverted else "") + words.pop(0)))
        elif word in ("-m", "--match") and words and not inverted:
            parts.append(("match", words.pop(0), []))
        elif word in ("-j", "--jump") and words and target is None and not inverted:
            target = ("target", words.pop(0), [])
        elif word.startswith("--") and (parts or target):
            values = []
            while words and not words[0].startswith("-") and words[0] != "!":
                values.append(words.pop(0))
            (target or parts[-1])[2].append((word[2:], tuple(values), inverted))
        else:
            raise Inexpressible(text)
        inverted = False
    if target is None:
        raise Inexpressible(text)
    return heads, [*parts, target]
