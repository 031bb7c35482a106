"""State on disk: 0600 files under 0700 folders, replaced atomically and durably.

A commit is: temporary file, fsync, rename, fsync of the folder. After a crash at any instruction a reader sees the
old or the new content, whole. A failed fsync is never retried on the same file (the kernel may have dropped the
pages): the next commit writes a new temporary file.
"""

from __future__ import annotations

import errno
import os
import stat

from cnimeta.host.owned import NotOurs, is_own_folder, own_folder, own_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BYTES = 16 << 20
"""Of a file of state that is read: a record, a cached result."""
_TEMPORARY = ".tmp-"
"""Prefix of unfinished files; readers of folders skip these."""
_PRIVATE = 0o600


def replace_file(
    path: str, data: bytes, *, mode: int = _PRIVATE, durable: bool = True, temporary: str = _TEMPORARY, ending: str = ""
) -> None:
    """Replace the file at `path` atomically, and durably unless told otherwise. Its folder must be there.

    temporary: prefix of the unfinished file's name; two writers that may meet use different ones. ending: what follows
    its name, where some program loads files by how they end. Raises OSError, and leaves the file as it was.
    """
    folder, name = os.path.split(path)
    unfinished = os.path.join(folder, temporary + name + ending)
    try:
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            if mode != _PRIVATE:
                os.fchmod(fd, mode)  # whatever the umask
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(unfinished, path)
    except BaseException:
        try:
            os.unlink(unfinished)
        except OSError:  # refused: what failed is raised, and the next write takes the name
            pass
        raise
    if durable:
        sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Make durable which names a folder has. Raises OSError."""
    fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class PosixFiles:
    """The Files adapter on the real file system. Every failure is the OSError the system gave.

    `exclusive`: a lock of the caller's keeps every other writer out of these folders. Temporary files then have fixed
    names, so what a killed process left is overwritten by the next write of its target, or goes when that is removed.
    Without `durable` nothing is synced: for state that a reboot makes void anyway.

    A folder or file that is not this user's alone, a link, or what is no plain file raises NotOurs (code 104); a file
    of more than MAX_BYTES an OSError (EFBIG).
    """

    def __init__(self, *, exclusive: bool = False, durable: bool = True) -> None:
        self._durable = durable
        self._temporary = _TEMPORARY if exclusive else f"{_TEMPORARY}{os.getpid()}-"
        self._exclusive = exclusive

    def read(self, path: str) -> bytes | None:
        """The content, or None when there is no such file."""
        if not _is_folder(os.path.dirname(path)):
            return None
        try:
            descriptor = own_open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except NotOurs:
            _refuse_kind(path, stat.S_ISDIR, errno.EISDIR)
            raise
        with open(descriptor, "rb", buffering=0) as file:
            if os.fstat(descriptor).st_size > MAX_BYTES:
                raise OSError(errno.EFBIG, f"it is longer than {MAX_BYTES} bytes", path)
            return file.read()

    def write(self, path: str, data: bytes) -> None:
        """Replace `path` with `data`, atomically and durably; the folder is made (0700) when missing."""
        self.make_folder(os.path.dirname(path))
        replace_file(path, data, durable=self._durable, temporary=self._temporary)

    def remove(self, path: str) -> None:
        """Remove `path`, durably; a missing file is fine."""
        folder, name = os.path.split(path)
        if not _is_folder(folder):
            return
        if self._exclusive:
            try:
                os.unlink(os.path.join(folder, self._temporary + name))
            except FileNotFoundError:
                pass
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        if self._durable:
            sync_folder(folder)

    def names(self, folder: str) -> list[str]:
        """The files of a folder, sorted, unfinished ones left out; empty when there is no such folder."""
        if not _is_folder(folder):
            return []
        try:
            with os.scandir(folder) as entries:
                found = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if not name.startswith(_TEMPORARY))

    def any_name(self, folder: str, suffix: str) -> bool:
        """Whether the folder has a finished file whose name ends so; looks no further than the first."""
        if not _is_folder(folder):
            return False
        try:
            with os.scandir(folder) as entries:
                return any(
                    entry.name.endswith(suffix)
                    and not entry.name.startswith(_TEMPORARY)
                    and not entry.is_dir(follow_symlinks=False)
                    for entry in entries
                )
        except FileNotFoundError:
            return False

    def make_folder(self, folder: str) -> None:
        """Make `folder` (0700) and what is missing above it."""
        if not _is_folder(folder):
            own_folder(folder)


def _is_folder(path: str) -> bool:
    """As `is_own_folder`; for a file OSError (ENOTDIR), as the system has it."""
    try:
        return is_own_folder(path)
    except NotOurs:
        _refuse_kind(path, stat.S_ISREG, errno.ENOTDIR)
        raise


def _refuse_kind(path: str, is_kind: Callable[[int], bool], number: int) -> None:
    if is_kind(os.lstat(path).st_mode):
        raise OSError(number, os.strerror(number), path) from None
