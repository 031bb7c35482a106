"""The locks of attachments. Whoever makes or removes something for an attachment holds its lock meanwhile.

A runtime works on a container one command at a time; a take-over, GC and repair come from elsewhere.
"""

from __future__ import annotations

from cnimeta.errors import StateUnusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from cnimeta.host.protocols import Locks

FOLDER = "portmap-locks"
TIMEOUT_S = 30.0


def locks_under(data_dir: str) -> Locks:
    """The locks that all commands with this dataDir meet at."""
    from cnimeta.store.locks import AttachmentLocks

    return AttachmentLocks(f"{data_dir}/{FOLDER}", TIMEOUT_S)


class HeldIfPossible:
    """A `with` block under an attachment's lock, or without one where it cannot be made, as on a full disk.

    For what removes: it has to go on. TryAgainLater (code 11) when another command is at work for too long.
    """

    def __init__(self, locks: Locks, key: tuple[str, str, str], log: Callable[[str], None]) -> None:
        self._lock = locks.of(key)
        self._log = log
        self._held: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        try:
            held = self._lock.held()
            held.__enter__()
        except StateUnusable as error:
            self._log(f"portmap: goes on without a lock: {error.msg}")
            return
        self._held = held

    def __exit__(self, *_: object) -> None:
        if self._held is not None:
            self._held.__exit__(None, None, None)
