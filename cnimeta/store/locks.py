"""One lock per attachment, so that no command acts on what another has changed meanwhile.

The locks are striped over a fixed set of files that are never written, renamed or removed (a removed lock file has two
holders); the kernel drops a lock when its holder dies. Two attachments may share a stripe: then one waits for the
other, which costs time and nothing else.
"""

from __future__ import annotations

import os
from binascii import crc32

from cnimeta.errors import StateUnusable, shown
from cnimeta.host.lock import NodeLock
from cnimeta.host.owned import own_file, own_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from cnimeta.host.protocols import Lock

    Key: TypeAlias = tuple[str, str, str]
    """(network, container ID, ifname), as `Attachment.key`."""
else:
    Key = tuple

STRIPES = 1024
"""Never change: an earlier and a later version have to meet at the same file."""


class AttachmentLocks:
    """The locks under `folder`, which is made, as is the one it lies in; waited for at most `timeout_s` seconds."""

    def __init__(self, folder: str, timeout_s: float) -> None:
        self.folder = folder
        self.timeout_s = timeout_s

    def of(self, key: Key) -> Lock:
        """The lock of one attachment. TryAgainLater (code 11) when another command works on it for too long;
        StateUnusable (104) when the folder cannot be used, or is not this user's alone.
        """
        return OwnLock(self.folder, self._file(key), self.timeout_s)

    def try_of(self, key: Key) -> Lock:
        """The same without a wait, for commands that rather leave out what is busy."""
        return OwnLock(self.folder, self._file(key), 0)

    def _file(self, key: Key) -> str:
        _, container_id, ifname = key  # a network can be renamed between ADD and DEL
        return f"{self.folder}/{crc32(f'{container_id}/{ifname}'.encode('utf-8', 'surrogateescape')) % STRIPES:03x}"


class OwnLock:
    """A NodeLock on the file `path` in `folder`, both this user's alone, as is the folder that `folder` lies in."""

    def __init__(self, folder: str, path: str, timeout_s: float, kind: str = "attachment") -> None:
        self._folder = folder
        self._path = path
        self._timeout_s = timeout_s
        self._kind = kind

    def held(self) -> AbstractContextManager[None]:
        """A `with` block under the lock."""
        try:
            own_folder(os.path.dirname(self._folder))
            own_folder(self._folder)
            own_file(self._path)
        except OSError as error:
            raise StateUnusable(
                f"the lock {shown(self._path)} cannot be used: {error.strerror or error}; check dataDir and its file"
                " system"
            ) from None
        return NodeLock(self._path, self._timeout_s, self._kind).held()
