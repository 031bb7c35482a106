"""What one invocation goes through, noted while it is served and told when its answer is out (`cnimeta.plugin.report`).

Nothing is noted unless the process has begun to: one that serves a single invocation does, everywhere else these
functions do nothing. Notes are a few list entries; what becomes of them is off the way of the container.
"""

from __future__ import annotations

import time

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.errors import CniError


FOLDER = "/run/cnimeta/observed"
"""Where the reports lie that are made of notes. Without the folder nobody reads them, and none is made."""
VARIABLE = "CNIMETA_OBSERVED"
"""Names another folder, for tests."""


class Called(NamedTuple):
    """A plugin that was called as a delegate, in this process or in one of its own."""

    plugin: str
    verb: str
    code: int
    """0, or that of its error."""
    after_s: float
    """Since the invocation began."""
    seconds: float


class Counted(NamedTuple):
    """Something that happened: the name of a counter, and its labels (name, value)."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()


class Notes:
    """Of one invocation. `began_s` is the wall clock's."""

    def __init__(self) -> None:
        self.began_s = time.time()
        self._began = time.monotonic()
        self.plugin = ""
        self.network = ""
        self.failure: CniError | None = None
        self.parent = self.span = ""
        self.called: list[Called] = []
        self.waits: list[tuple[str, float]] = []
        """(lock, seconds) for each lock that was not free at once."""
        self.counted: list[Counted] = []

    def elapsed_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began


_notes: Notes | None = None


def begin() -> None:
    """This process serves one invocation from here on."""
    global _notes  # noqa: PLW0603 - it is about this process
    _notes = Notes()


def end() -> Notes | None:
    """The notes, which are closed with that."""
    global _notes
    notes, _notes = _notes, None
    return notes


def about(plugin: str, network: str = "") -> None:
    """Who serves it, and which network it is about; what is known first stands: delegates are served here too."""
    if _notes is not None:
        _notes.plugin = _notes.plugin or plugin
        _notes.network = _notes.network or network


def within(parent: str, span: str) -> None:
    """It is a span of its own: the trace parent that the caller gave, and the ID that delegates are given."""
    if _notes is not None:
        _notes.parent, _notes.span = parent, span


def failed(error: CniError | None) -> None:
    """What it was answered with, if that is an error."""
    if _notes is not None:
        _notes.failure = error


def moment() -> float:
    """For `waited` and `called`, which say how long something took since."""
    return time.monotonic()


def waited(lock: str, since: float, unless_s: float = 0.0) -> None:
    """A lock of this kind was waited for since that moment, in vain or not; no wait is one that took less than that."""
    if _notes is not None:
        seconds = time.monotonic() - since
        if seconds >= unless_s:
            _notes.waits.append((lock, seconds))


def called(plugin: str, verb: str, code: int, since: float) -> None:
    """A delegate was called at that moment, and has answered."""
    if _notes is not None:
        seconds = time.monotonic() - since
        _notes.called.append(Called(plugin, verb, code, _notes.elapsed_s() - seconds, seconds))


def count(name: str, **labels: str) -> None:
    """Something happened. `name` is a counter's that the plugin has among its metrics (`Plugin.metrics`), with its help
    and zeros for the labels that are known beforehand.
    """
    if _notes is not None:
        _notes.counted.append(Counted(name, tuple(labels.items())))
