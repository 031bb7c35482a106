"""A bundle: the code of every module on a plugin's way in one file, so that its start need not look for sixty.

To import a module, Python lists folders, and opens, reads and checks a file: with sixty modules, half of what a
launcher does before it acts. `cnimeta install` writes the bundle beside the compiled modules, and a launcher reads it
first: a table of code, and a finder that answers from it. It is a cache: a module whose source has another size or time
than it had is imported as usual, and so is everything when the bundle is missing, damaged, of another Python, or of
packages in other folders than the launcher's, as in a copy of an installation.

And it is whole where the installation is not. pip takes the old files away before it writes the new ones, the list of
them (RECORD) first and last. While there is no such list, somebody is at work, and every module is taken from the
bundle, whatever its source is by then; when there is a new one, the sources are whole again, and none is.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ast import Module
    from collections.abc import Iterator
    from importlib.machinery import ModuleSpec
    from types import CodeType

    from cnimeta.plugin.registry import Target

_ALWAYS = ("cnimeta.plugin.dispatch", "cnimeta.plugin.registry", "cnimeta.agent.client")
"""What a launcher imports itself."""
_INFO = ".dist-info"
_RECORD = "RECORD"

_HASH_KEY = 1
_HEAD_BYTES = 12
"""The first bytes of a bundle: the magic number of the Python that wrote it, and the hash of all that follows.

The hash is a keyed one that the interpreter has built in (SipHash, of 8 bytes; 0.3 ms for the largest bundle), against
damage: whoever can write here can write modules. Code is not given to marshal unless it is whole: what it makes of
damaged code is not always an error.
"""

_READER = """try:
    import marshal
    from _imp import source_hash
    with open({path!r}, "rb", 0) as file:
        data = memoryview(file.read())
    head = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER + source_hash({key}, data[{start}:])
    if data[:{start}] == head:
        place, finder, table, records = marshal.loads(data[{start}:])
        if place == {place!r}:
            exec(finder, {{"table": table, "records": records}})
except (OSError, ValueError, EOFError, TypeError):
    pass
"""
"""What a launcher does with it."""

_FINDER = """
import sys
from _frozen_importlib import ModuleSpec
from marshal import loads
from posix import listdir, stat

def judge():
    unlisted = False
    for folder, name, size, time in records:
        try:
            there = stat(f"{folder}/{name}/RECORD")
        except OSError:
            if any(is_complete(folder, other, name) for other in listdir(folder)):
                return "replaced"
            unlisted = True
        else:
            if there.st_size != size or there.st_mtime_ns != time:
                return "replaced"
    return "unlisted" if unlisted else "as it was"

def is_complete(folder, other, name):
    if not other.startswith(name[:name.index("-") + 1]) or not other.endswith(".dist-info"):
        return False
    try:
        stat(f"{folder}/{other}/RECORD")
    except OSError:
        return False
    return True

class Bundle:
    @staticmethod
    def find_spec(name, path=None, target=None):
        found = table.get(name)
        if found is None:
            return None
        file, folder, size, time, _ = found
        if state == "as it was":
            try:
                there = stat(file)
            except OSError:
                pass
            else:
                if (there.st_size != size or there.st_mtime_ns != time) and judge() == "as it was":
                    return None
        spec = ModuleSpec(name, Bundle, origin=file, is_package=bool(folder))
        spec.has_location = True
        if folder:
            spec.submodule_search_locations.append(folder)
        return spec

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        exec(loads(table[module.__name__][4]), module.__dict__)

state = judge()
if state != "replaced":
    sys.meta_path.insert(0, Bundle)
"""
"""Judged at the start and for each module that has changed: a process is served by one version, whole."""


def path_of(package: str, name: str) -> str:
    """Where the bundle of the launcher `name` lies, by the folder of the cnimeta package."""
    return os.path.join(package, "__pycache__", f"{name}.{sys.implementation.cache_tag}.bundle")


def remove(package: str, name: str) -> None:
    """Take the bundle away, if it can be: launchers in other folders go on without it, more slowly."""
    try:
        os.unlink(path_of(package, name))
    except OSError:  # refused: it is a cache, and verified by who reads it
        pass


def reader(package: str, target: Target, name: str) -> str:
    """The lines of the launcher `name` that take what its bundle has."""
    place = _place(package, target)
    return _READER.format(path=path_of(package, name), place=place, key=_HASH_KEY, start=_HEAD_BYTES)


def build(package: str, target: Target) -> bytes:
    """The bundle of a plugin, by the folder of the cnimeta package. Raises OSError, SyntaxError."""
    import marshal

    table = {}
    for name, file in _modules(package, target).items():
        table[name] = (*_entry(file), marshal.dumps(_compiled(file)))
    finder = compile(_FINDER, "<bundle>", "exec", dont_inherit=True)
    body = marshal.dumps((_place(package, target), finder, table, _records(package, target)))
    return _head(body) + body


def take(package: str, target: Target, name: str) -> None:
    """Have this process take modules from the bundle of the launcher `name` too, unless it has the plugin already."""
    if target.plugin.partition(":")[0] not in sys.modules:
        exec(reader(package, target, name), {"sys": sys})  # noqa: S102 - as that launcher does


def bundled(name: str, file: str) -> ModuleSpec | None:
    """What a bundle that this process takes modules from has for `name`, which is to be of this file."""
    for finder in sys.meta_path:
        if getattr(finder, "__name__", "") == "Bundle":
            spec = finder.find_spec(name, None)
            if spec is not None and spec.origin == file:
                return spec
    return None


def is_current(package: str, target: Target, name: str) -> bool:
    """Whether the bundle is what `build` would make: of these very modules, unchanged, which import what they did."""
    import marshal

    try:
        with open(path_of(package, name), "rb") as bundle:
            head, body = bundle.read(_HEAD_BYTES), bundle.read()
        if head != _head(body):
            return False
        place, _, table, records = marshal.loads(body)  # noqa: S302 - as trusted as the modules beside it
        if (place, records) != (_place(package, target), _records(package, target)):
            return False
        return all(entry[:4] == _entry(entry[0]) for entry in table.values())
    except (OSError, ValueError, EOFError, TypeError):  # unknown: the modules are read one by one
        return False


def _head(body: bytes) -> bytes:
    from _imp import source_hash
    from importlib.util import MAGIC_NUMBER

    return MAGIC_NUMBER + source_hash(_HASH_KEY, body)


def _place(package: str, target: Target) -> tuple[str, ...]:
    """What a bundle is of: the plugin, and where the packages lie that its modules are from."""
    return (package, target.plugin, target.file)


def _entry(file: str) -> tuple[str, str, int, int]:
    """What a module is told by: its file, its folder if it is a package, the file's size and time."""
    there = os.stat(file)
    folder = os.path.dirname(file) if os.path.basename(file) == "__init__.py" else ""
    return (file, folder, there.st_size, there.st_mtime_ns)


def _modules(package: str, target: Target) -> dict[str, str]:
    """The modules that a plugin can come to import, by name, and their files: the SDK's, and its own package's."""
    known = dict(_below("cnimeta", package))
    if os.path.basename(target.file) == "__init__.py":
        known |= dict(_below(target.package, os.path.dirname(target.file)))
    found: dict[str, str] = {}
    waiting = [*_ALWAYS, target.plugin.partition(":")[0]]
    while waiting:
        name = waiting.pop()
        if name not in found and name in known:
            found[name] = known[name]
            waiting += [*_imports(known[name]), name.rpartition(".")[0]]
    return {name: file for name, file in found.items() if name != "cnimeta"}  # which a launcher makes itself


def _records(package: str, target: Target) -> tuple[tuple[str, str, int, int], ...]:
    """The lists of files that pip keeps of the packages: folder, name, size, time. None for what it did not install."""
    found = []
    for file in dict.fromkeys((os.path.join(package, "__init__.py"), target.file)):
        root, listed = _listed(file)
        for name in sorted(os.listdir(root)) if root else ():
            path = os.path.join(root, name, _RECORD)
            if name.endswith(_INFO) and _is_listed(path, listed):
                there = os.stat(path)
                found.append((root, name, there.st_size, there.st_mtime_ns))
    return tuple(dict.fromkeys(found))


def _listed(file: str) -> tuple[str, str]:
    """The folder of packages that a package or module lies in, and how a list names its file."""
    folder, name = os.path.split(file)
    if name != "__init__.py":
        return folder, name
    root, package = os.path.split(folder)
    return root, f"{package}/{name}"


def _is_listed(record: str, file: str) -> bool:
    try:
        with open(record, encoding="utf-8", errors="replace") as lines:
            return any(line.startswith(f"{file},") for line in lines)
    except OSError:  # unknown: then no list says when the files are whole
        return False


def _imports(file: str) -> Iterator[str]:
    """What a module names in its imports, and those of its functions; not for type checkers."""
    import ast

    waiting: list[ast.AST] = [_tree(file)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            waiting += ast.iter_child_nodes(node)


def _tree(file: str) -> Module:
    import ast

    with open(file, "rb") as source:
        return ast.parse(source.read(), file)


def _below(name: str, folder: str) -> Iterator[tuple[str, str]]:
    """(name, file) of a package and all that is in it."""
    for entry in sorted(os.listdir(folder)):
        path = os.path.join(folder, entry)
        if entry == "__init__.py":
            yield name, path
        elif entry.endswith(".py") and entry[:-3].isidentifier():
            yield f"{name}.{entry[:-3]}", path
        elif os.path.isfile(os.path.join(path, "__init__.py")):  # unknown: what is missing is imported the usual way
            yield from _below(f"{name}.{entry}", path)


def _compiled(file: str) -> CodeType:
    """The code of a module without its documentation, which nobody reads at run time."""
    import ast

    tree = _tree(file)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            # Before the imports of __future__ there may be no other statement.
            node.body[:1] = [] if isinstance(node, ast.Module) else [ast.copy_location(ast.Pass(), node.body[0])]
    code: CodeType = compile(tree, file, "exec", dont_inherit=True)
    return code
