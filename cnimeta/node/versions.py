"""Versions of cnimeta beside one another in a folder, and which of them is used.

    /opt/cnimeta/0.1.0
    /opt/cnimeta/0.2.0
    /opt/cnimeta/current -> 0.2.0
    /opt/cnimeta/previous -> 0.1.0

A version comes into being by one rename and never changes afterwards; a link is replaced by one rename. So a process
that ends anywhere leaves what was there or what is to be, and whoever comes next completes it. The names of what is
unfinished begin with a dot.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tarfile
from typing import TYPE_CHECKING, NamedTuple

from cnimeta.errors import IoFailure, shown
from cnimeta.host.files import sync_folder
from cnimeta.host.lock import NodeLock

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

ROOT = "/opt/cnimeta"
MARKER = "standalone.json"
"""What a standalone folder (`scripts/standalone.py`) says of itself. Never change: later versions look for it."""
_CURRENT, _PREVIOUS = "current", "previous"
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]*")
_LOCK_S = 120
_DIGEST_CHARS = 8


class Standalone(NamedTuple):
    """A folder with an interpreter in it, which runs wherever it is put."""

    folder: str
    version: str
    digest: str
    """Of its files, as they were made."""


class Versions:
    """The versions in `root`, which is made when something is put there."""

    def __init__(self, root: str = ROOT) -> None:
        self.root = os.path.abspath(root)

    def locked(self) -> AbstractContextManager[None]:
        """A `with` block that no other upgrade runs in. TryAgainLater (code 11) after two minutes."""
        os.makedirs(self.root, exist_ok=True)
        return NodeLock(os.path.join(self.root, ".lock"), _LOCK_S).held()

    def folder(self, name: str) -> str:
        """The folder of a version. Raises IoFailure (code 5) when it is not there."""
        path = os.path.join(self.root, name)
        if not _NAME.fullmatch(name) or name in (_CURRENT, _PREVIOUS) or not os.path.exists(command(path)):
            there = ", ".join(self.names()) or "none"
            raise IoFailure(f"{self.root} has no version {shown(name)} (there are: {there})")
        return path

    def names(self) -> list[str]:
        """The versions that are there, the one that was used last at the end."""
        with contextlib.suppress(FileNotFoundError):
            found = [name for name in os.listdir(self.root) if _NAME.fullmatch(name) and self._is_version(name)]
            return sorted(found, key=lambda name: (os.stat(os.path.join(self.root, name)).st_mtime, name))
        return []

    @property
    def current(self) -> str:
        """The name of the version that is used; empty for none."""
        return self._linked(_CURRENT)

    @property
    def previous(self) -> str:
        """The name of the one that was used before; empty for none."""
        return self._linked(_PREVIOUS)

    def has(self, folder: str) -> bool:
        """Whether a folder lies here already."""
        return os.path.dirname(os.path.realpath(folder)) == os.path.realpath(self.root)

    def place(self, source: str, *, link: bool = False) -> str:
        """Have a copy of a standalone folder, or of an archive of one; where it lies.

        link: its files are linked, where they can be, and take no place of their own. Under the lock. Raises IoFailure
        (code 5).
        """
        self._clear()
        unfinished = os.path.join(self.root, f".new-{os.getpid()}")
        try:
            if os.path.isdir(source):
                name, there = self._name_for(standalone(source))
                if there:
                    return os.path.join(self.root, name)
                _copy(source, unfinished, link=link)
            else:
                unpack(source, unfinished)
                name, there = self._name_for(standalone(unfinished))
                if there:
                    return os.path.join(self.root, name)
            os.sync()  # what the rename makes visible is on the disk by then
            os.rename(unfinished, os.path.join(self.root, name))
            sync_folder(self.root)
        except OSError as error:
            raise IoFailure(f"cannot put {shown(source)} into {self.root}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return os.path.join(self.root, name)

    def point(self, name: str) -> None:
        """Make this version the current one, and the one that was the previous. Under the lock."""
        before = self.current
        if before and before != name:
            self._link(_PREVIOUS, before)
        if before != name:
            self._link(_CURRENT, name)
        os.utime(os.path.join(self.root, name))

    def prune(self, keep: int) -> list[str]:
        """Remove standalone versions but for the last `keep`, the current, the previous, and what runs; their names."""
        kept = {self.current, self.previous, *self.names()[-keep:]}
        gone = []
        for name in self.names():
            path = os.path.join(self.root, name)
            if name not in kept and os.path.exists(os.path.join(path, MARKER)) and not _runs(path):
                unused = os.path.join(self.root, f".old-{name}")
                os.rename(path, unused)  # a version is whole or not there
                shutil.rmtree(unused, ignore_errors=True)
                gone.append(name)
        return gone

    def _is_version(self, name: str) -> bool:
        path = os.path.join(self.root, name)
        return not os.path.islink(path) and os.path.exists(command(path))

    def _linked(self, name: str) -> str:
        try:
            return os.path.basename(os.readlink(os.path.join(self.root, name)))
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise IoFailure(f"{self.root}/{name} should be a link: {error.strerror or error}") from None

    def _link(self, name: str, target: str) -> None:
        unfinished = os.path.join(self.root, f".{name}-{os.getpid()}")
        os.symlink(target, unfinished)
        os.rename(unfinished, os.path.join(self.root, name))
        sync_folder(self.root)

    def _name_for(self, made: Standalone) -> tuple[str, bool]:
        """(name, whether it is there): its version, with some of the digest when another build has that name."""
        for name in (made.version, f"{made.version}+{made.digest[:_DIGEST_CHARS]}"):
            path = os.path.join(self.root, name)
            if not os.path.lexists(path):
                return name, False
            with contextlib.suppress(IoFailure):
                if standalone(path).digest == made.digest:
                    return name, True
        raise IoFailure(f"{self.root}/{made.version} is in the way: it is another cnimeta, or none")

    def _clear(self) -> None:
        """Remove what an upgrade left that was killed."""
        for name in os.listdir(self.root):
            path = os.path.join(self.root, name)
            if name.startswith((".new-", ".old-")):
                shutil.rmtree(path, ignore_errors=True)
            elif name.startswith((f".{_CURRENT}-", f".{_PREVIOUS}-")):
                os.unlink(path)


def command(folder: str) -> str:
    """The `cnimeta` command of an installation."""
    return os.path.join(folder, "bin", "cnimeta")


def standalone(folder: str) -> Standalone:
    """What a standalone folder says of itself. Raises IoFailure (code 5) when it is none."""
    try:
        with open(os.path.join(folder, MARKER), encoding="utf-8") as file:
            body = json.load(file)
        version, digest = body["version"], body["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        raise IoFailure(f"{shown(folder)} is no standalone folder of cnimeta: it has no {MARKER}") from None
    if not (isinstance(version, str) and _NAME.fullmatch(version) and isinstance(digest, str) and digest.isalnum()):
        raise IoFailure(f"{shown(folder)}/{MARKER} names no version")
    return Standalone(folder, version, digest)


def unpack(archive: str, folder: str) -> None:
    """What one folder in a tar archive has, as `folder`. Nothing of it can be put elsewhere. Raises IoFailure."""
    inside = f"{folder}.d"
    try:
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            for member in tar:
                _judge(member, archive)
                tar.extract(member, inside)
        names = os.listdir(inside)
        if len(names) != 1:
            raise IoFailure(f"{shown(archive)} has not one folder in it, but {len(names)}")
        os.rename(os.path.join(inside, names[0]), folder)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise IoFailure(f"{shown(archive)} cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(inside, ignore_errors=True)


def _judge(member: tarfile.TarInfo, archive: str) -> None:
    """Raise IoFailure for what `scripts/standalone.py` puts into no archive; the rest belongs to who unpacks it.

    Files and folders alone, so nothing leads elsewhere. Tarfile's own filter does as much, but Debian 12's has none.
    """
    if not (member.isreg() or member.isdir()) or member.name.startswith("/") or ".." in member.name.split("/"):
        raise IoFailure(f"{shown(archive)} cannot be unpacked: {shown(member.name)} is no file or folder below it")
    member.mode &= 0o755
    member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""


def _copy(source: str, target: str, *, link: bool) -> None:
    def copied(from_path: str, to_path: str) -> str:
        if link:
            with contextlib.suppress(OSError):  # another file system, or one without hard links
                os.link(from_path, to_path)
                return to_path
        return str(shutil.copy2(from_path, to_path))

    shutil.copytree(source, target, symlinks=True, copy_function=copied)


def _runs(folder: str) -> bool:
    """Whether a process runs a program of this folder."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/exe").startswith(f"{folder}/"):
                return True
    return False
