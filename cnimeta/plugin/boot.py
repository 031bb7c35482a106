"""What a launcher does with its bundle, before it imports anything: this module's code is run from there.

Modules that are wanted together are executed in order, which takes 5 µs each where the import machinery takes 25.
Whatever is amiss with one is left to its import, so that the error arises where it belongs: a module whose source is
not as it was, one that is not in the bundle, one that fails. A query of VERSION is answered without any of them.
"""

from __future__ import annotations

import gc
import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec
from _imp import source_hash

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _io import FileIO
    from collections.abc import Iterable
    from types import CodeType, ModuleType
    from typing import Any, TypeAlias

    Stamp: TypeAlias = tuple[str, int, int]
    """What a file was: its path, its size, its time."""
    Entry: TypeAlias = tuple[Stamp, str, tuple[str, ...]]
    """Of a module: its file; its folder, if it is a package; what it imports at its top level, in an order in which
    that can be executed.
    """
    Record: TypeAlias = tuple[str, str, int, int]
    """The list of files that pip keeps of a package: folder, name of the folder with it, size, time."""
    First: TypeAlias = tuple[str, str, tuple[Stamp, ...], tuple[Record, ...], int, bytes, bytes]
    """The answer to VERSION, before and after the version, and what it was taken from; the lists of files; where the
    second part ends; the hashes of the second and the third.
    """
    Second: TypeAlias = tuple[dict[str, Entry], dict[str, str], tuple[str, ...], dict[str, CodeType]]
    """All modules; the files of those in C; what is executed at once; the code of those that are wanted as a rule."""

HASH_KEY = 1
_QUERY_BYTES = 4096
_STDIN, _STDOUT = 0, 1
_AS_IT_WAS, _UNLISTED, _REPLACED = "as it was", "unlisted", "replaced"


def boot(path: str, file: FileIO, first: First, is_launcher: bool) -> None:
    """Have the modules of the bundle at `path`; `file` stands behind its first part.

    Does not return from a VERSION that it can answer, in a launcher.
    """
    head, tail, stamps, records, end, second_hash, third_hash = first
    state = judge(records)
    if state == _REPLACED:
        return
    if is_launcher:
        gc.disable()  # it takes 1 ms, and the process ends before it is worth that
        if posix.environ.get(b"CNI_COMMAND") == b"VERSION" and state == _AS_IT_WAS and all(map(is_same, stamps)):
            _serve_version(head, tail)
    second = file.read(end - file.tell())
    if source_hash(HASH_KEY, second) != second_hash:
        return
    content: Second = marshal.loads(second)  # noqa: S302 - as trusted as the modules beside it
    if "os" not in sys.modules:
        _System.install()
    finder = Bundle(path, content, (end, third_hash), records, state)
    sys.meta_path.insert(0, finder)
    finder.execute(content[2])


def judge(records: tuple[Record, ...]) -> str:
    """How the installation is: as it was; being replaced, of which pip has no list; or replaced.

    Judged at the start and for each module that has changed: a process is served by one version, whole.
    """
    state = _AS_IT_WAS
    for folder, name, size, time in records:
        try:
            there = posix.stat(f"{folder}/{name}/RECORD")
        except OSError:  # unknown: that another list is there tells
            if any(_is_complete(folder, other, name) for other in posix.listdir(folder)):
                return _REPLACED
            state = _UNLISTED
        else:
            if there.st_size != size or there.st_mtime_ns != time:
                return _REPLACED
    return state


def _is_complete(folder: str, other: str, name: str) -> bool:
    """Whether `other` has the list of another version of the package whose list `name` had."""
    if not other.startswith(name[: name.index("-") + 1]) or not other.endswith(".dist-info"):
        return False
    try:
        posix.stat(f"{folder}/{other}/RECORD")
    except OSError:  # unknown: as long as it cannot be seen, somebody is at work
        return False
    return True


def is_same(stamp: Stamp) -> bool:
    """Whether a file is as it was."""
    path, size, time = stamp
    try:
        there = posix.stat(path)
    except OSError:  # unknown: what it has is taken from the file itself, or fails there
        return False
    return there.st_size == size and there.st_mtime_ns == time


class Bundle:
    """The finder of a launcher's modules. The code of those that every ADD or DEL needs is at hand; that of the others
    is read from the third part of the bundle when one of them is wanted.
    """

    def __init__(
        self, path: str, content: Second, rest: tuple[int, bytes], records: tuple[Record, ...], state: str
    ) -> None:
        """`rest`: where the third part begins, and its hash. `records` and `state` as `judge` has them."""
        self._path, self._rest, self._records, self._state = path, rest, records, state
        self._entries, self._extensions, _, self._code = content
        self._more: dict[str, bytes] | None = None

    # --- as importlib asks -----------------------------------------------------------------------------------

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """What the module imports at its top level is executed meanwhile."""
        if name in self._entries:
            self.execute(self._entries[name][2])
            return self._spec(name)
        file = self._extensions.get(name)
        if file is None or file.rpartition("/")[0] not in sys.path:
            return None
        from _frozen_importlib_external import ExtensionFileLoader

        return ModuleSpec(name, ExtensionFileLoader(name, file), origin=file)

    def create_module(self, _spec: ModuleSpec) -> None:
        """A plain one."""

    def exec_module(self, module: ModuleType) -> None:
        """Its code is at hand since its spec was made."""
        exec(self._code[module.__name__], module.__dict__)  # noqa: S102 - that is what an import is

    # --- ahead of imports ------------------------------------------------------------------------------------

    def execute(self, names: Iterable[str]) -> None:
        """Execute modules in this order, as far as that succeeds."""
        modules = sys.modules
        for name in names:
            parent, _, short = name.rpartition(".")
            spec = None if name in modules or (parent and parent not in modules) else self._spec(name)
            if spec is None:
                continue
            module = modules[name] = type(sys)(name)
            inside = spec.submodule_search_locations
            if inside is not None:
                module.__path__ = inside
            module.__spec__, module.__loader__ = spec, self  # type: ignore[assignment]
            module.__file__, module.__package__ = spec.origin, parent if inside is None else name
            try:
                exec(self._code[name], module.__dict__)  # noqa: S102 - as above
            except Exception:  # noqa: BLE001 - then: its import tells
                del modules[name]
                return
            if parent:
                setattr(modules[parent], short, module)

    def _is_to_be_taken(self, stamp: Stamp) -> bool:
        """Whether a module is, which has not changed, or is gone, or is changed by who is at work on all of them."""
        if self._state != _AS_IT_WAS:
            return True
        path, size, time = stamp
        try:
            there = posix.stat(path)
        except OSError:  # unknown: what was whole when this process began is taken
            return True
        return (there.st_size == size and there.st_mtime_ns == time) or judge(self._records) != _AS_IT_WAS

    def _spec(self, name: str) -> ModuleSpec | None:
        """None for a module that has changed, or whose code cannot be had."""
        stamp, folder, _ = self._entries[name]
        if not self._is_to_be_taken(stamp) or not (name in self._code or self._read(name)):
            return None
        spec = ModuleSpec(name, self, origin=stamp[0], is_package=bool(folder))  # type: ignore[arg-type]
        spec.has_location = True
        if folder and spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(folder)
        return spec

    def _read(self, name: str) -> bool:
        """Read the code of a module from the third part; false when that is not whole."""
        if self._more is None:
            self._more = {}
            start, known = self._rest
            try:
                with open(self._path, "rb", 0) as file:
                    file.seek(start)
                    rest = file.read()
            except OSError:  # unknown: it is imported the usual way
                return False
            if source_hash(HASH_KEY, rest) == known:
                self._more = marshal.loads(rest)  # noqa: S302 - as above
        if name in self._more:
            self._code[name] = marshal.loads(self._more[name])  # noqa: S302 - as above
        return name in self._code


# --- VERSION -------------------------------------------------------------------------------------------------


def _serve_version(head: str, tail: str) -> None:
    """Answer and end. Returns, with nothing of stdin consumed, when the query is not plain."""
    if not head or None in (sys.stdin, sys.stdout, sys.stderr):
        return
    query = b""
    while len(query) <= _QUERY_BYTES and (more := posix.read(_STDIN, _QUERY_BYTES)):
        query += more
    version = _asked_version(query) if len(query) <= _QUERY_BYTES else ""  # else it may go on
    if not version:
        _unread(query)
        return
    answer = f"{head}{version}{tail}".encode()
    status = 0
    try:
        while answer:
            answer = answer[posix.write(_STDOUT, answer) :]
    except OSError:  # refused: nobody reads, or not now
        status = 1
    posix._exit(status)  # noqa: SLF001 - this is its name


def _asked_version(query: bytes) -> str:
    """The version in `{"cniVersion":"1.0.0"}`; empty for any other query."""
    opening, key, rest = query.partition(b'"cniVersion"')
    colon, quote, rest = rest.partition(b'"')
    version, end, closing = rest.partition(b'"')
    if not (key and quote and end) or (opening.strip(b" \t\r\n"), colon.strip(b" \t\r\n")) != (b"{", b":"):
        return ""
    plain = closing.strip(b" \t\r\n") == b"}" and version and not version.strip(b"0123456789.")
    return version.decode() if plain else ""


def _unread(data: bytes) -> None:
    """Have what was read of stdin, and what is left of it, read again. Raises MemoryError."""
    try:
        copy = posix.memfd_create("stdin")
        while data:
            while data:
                data = data[posix.write(copy, data) :]
            data = posix.read(_STDIN, 1 << 16)
        posix.lseek(copy, 0, 0)
        posix.dup2(copy, _STDIN)
        posix.close(copy)
    except OSError as error:
        raise MemoryError(f"for stdin: {error.strerror}") from None


# --- os --------------------------------------------------------------------------------------------------------


class _System(type(sys)):  # type: ignore[misc]
    """The module `os`, as far as it is the system's calls. The first to ask for anything else has all of it loaded.

    Its abstract base classes alone take 0.5 ms, for a dictionary of the environment.
    """

    environ: dict[str, str]

    @classmethod
    def install(cls) -> None:
        """Be `os`."""
        system = sys.modules["os"] = cls("os")
        system.__dict__.update(posix.__dict__, __name__="os", __spec__=None, __file__=None)
        import posixpath

        system.path = sys.modules["os.path"] = posixpath
        system.fsencode = _fsencode
        system.fsdecode = _fsdecode
        system.environ = _Environ((_fsdecode(name), _fsdecode(value)) for name, value in posix.environ.items())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole(), name)

    def whole(self) -> ModuleType:
        """Be all of it."""
        del sys.modules["os"]
        import os

        self.__class__ = type(sys)  # type: ignore[assignment]
        self.__dict__.update(os.__dict__)
        sys.modules["os"] = self
        return self


class _Environ(dict):  # type: ignore[type-arg]
    """What is changed in it has to be changed in the real one, of which programs get to see it."""

    def __setitem__(self, name: str, value: str) -> None:
        _real_environ()[name] = value
        super().__setitem__(name, value)

    def pop(self, name: str, *default: Any) -> Any:
        """As `dict` does."""
        _real_environ().pop(name, *default)
        return super().pop(name, *default)


def _real_environ() -> Any:
    system: Any = sys.modules["os"]
    return (system.whole() if isinstance(system, _System) else system).environ


def _fsencode(name: Any) -> bytes:
    path = posix.fspath(name)
    return path if isinstance(path, bytes) else path.encode(*_FILE_NAMES)


def _fsdecode(name: Any) -> str:
    path = posix.fspath(name)
    return path if isinstance(path, str) else path.decode(*_FILE_NAMES)


_FILE_NAMES = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
