"""A bundle: the code of every module on a plugin's way in one file, so that its start need not look for sixty.

To import a module, Python lists folders, and opens, reads and checks a file: with sixty modules, half of what a
launcher does before it acts. `cnimeta install` writes the bundle beside the compiled modules, and a launcher reads it
first (`boot.py`). It is a cache: a module whose source has another size or time than it had is imported as usual, and
so is everything when the bundle is missing, damaged, of another Python, or of packages in other folders than the
launcher's, as in a copy of an installation.

And it is whole where the installation is not. pip takes the old files away before it writes the new ones, the list of
them (RECORD) first and last. While there is no such list, somebody is at work, and every module is taken from the
bundle, whatever its source is by then; when there is a new one, the sources are whole again, and none is.
"""

from __future__ import annotations

import os
import sys

from cnimeta.errors import IoFailure
from cnimeta.plugin.boot import HASH_KEY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ast import AsyncFunctionDef, FunctionDef, Module
    from collections.abc import Iterable, Iterator
    from importlib.machinery import ModuleSpec
    from types import CodeType

    from cnimeta.plugin.registry import Target

_ALWAYS = ("cnimeta.plugin.dispatch", "cnimeta.plugin.registry")
"""What a launcher imports itself."""
_ASKING = "cnimeta.agent.client"
"""What one imports that asks the agent."""
_INFO = ".dist-info"
_RECORD = "RECORD"

_BOOT = "cnimeta.plugin.boot"
_ANSWERING = ("cnimeta", "cnimeta.spec.version", "cnimeta.plugin.dispatch")
"""Where the answer to VERSION comes from, beside the plugin's own module."""
_OURS = "cnimeta"
_HEAD_BYTES = 12
"""The first bytes of a bundle: the magic number of the Python that wrote it, and the hash of its first part's rest.

The hashes are keyed ones that the interpreter has built in (SipHash, of 8 bytes; 0.3 ms for a megabyte), against
damage: whoever can write here can write modules. Code is not given to marshal unless it is whole: what it makes of
damaged code is not always an error.
"""
FIRST_BYTES = 32768
"""The first part: what every start needs, `boot.py`. The second has what ADD and DEL need, the third the rest."""

_READER = """try:
    import marshal
    from _imp import source_hash
    with open({path!r}, "rb", 0) as file:
        data = memoryview(file.read({first}))
        head = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER + source_hash({key}, data[{start}:])
        if data[:{start}] == head:
            place, code, more = marshal.loads(data[{start}:])
            if place == {place!r}:
                there = {{"__name__": "cnimeta.plugin.boot"}}
                exec(code, there)
                there["boot"]({path!r}, file, more, globals().get("__name__") == "__main__")
except (OSError, ValueError, EOFError, TypeError):
    pass
"""
"""What a launcher does with it."""


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
    return _READER.format(path=path_of(package, name), place=place, key=HASH_KEY, start=_HEAD_BYTES, first=FIRST_BYTES)


def build(package: str, target: Target, answer: tuple[str, str] = ("", "")) -> bytes:
    """The bundle of a plugin, by the folder of the cnimeta package. Raises OSError, SyntaxError, IoFailure (code 5).

    answer: `launcher.version_answer`, where VERSION is to be answered from the bundle.
    """
    import marshal

    found = _Modules(package, target)
    main = target.plugin.partition(":")[0]
    first = found.in_order((*_ALWAYS, main))
    usual = found.in_order((*first, _ASKING, *found.usual(main)))
    names = dict.fromkeys((*found.reachable(), *usual, _BOOT))
    entries = {}
    for name in names:
        needed = () if name in first else found.in_order((name,))
        others = tuple(one for one in needed if one != name and one in names and one not in first)
        entries[name] = (_stamp(found.files[name]), _folder(found.files[name]), others)
    second = marshal.dumps((entries, found.extensions(usual), first, {name: found.code(name) for name in usual}))
    third = marshal.dumps({name: marshal.dumps(found.code(name)) for name in names if name not in usual})
    answering = (found.files[name] for name in (*_ANSWERING, main) if name in found.files)
    stamps = tuple(map(_stamp, dict.fromkeys(filter(None, (*answering, target.file)))))
    more = (*answer, stamps, _records(package, target), FIRST_BYTES + len(second), _hash(second), _hash(third))
    body = marshal.dumps((_place(package, target), found.code(_BOOT), more))
    if len(body) > FIRST_BYTES - _HEAD_BYTES:
        raise IoFailure(f"the bundle of {target.plugin} does not fit: {len(body)} bytes")
    body += bytes(FIRST_BYTES - _HEAD_BYTES - len(body))
    return _head(body) + body + second + third


def take(package: str, target: Target, name: str) -> None:
    """Have this process take modules from the bundle of the launcher `name` too, unless it has the plugin already."""
    if target.plugin.partition(":")[0] not in sys.modules:
        exec(reader(package, target, name), {"sys": sys})  # noqa: S102 - as that launcher does


def bundled(name: str, file: str) -> ModuleSpec | None:
    """What a bundle that this process takes modules from has for `name`, which is to be of this file."""
    for finder in sys.meta_path:
        if type(finder).__name__ == "Bundle":
            spec = finder.find_spec(name, None)
            if spec is not None and spec.origin == file:
                return spec
    return None


def is_current(package: str, target: Target, name: str) -> bool:
    """Whether the bundle is what `build` would make: of these very modules, unchanged, which import what they did."""
    import marshal

    try:
        with open(path_of(package, name), "rb") as bundle:
            data = bundle.read()
        if data[:_HEAD_BYTES] != _head(data[_HEAD_BYTES:FIRST_BYTES]):
            return False
        place, _, more = marshal.loads(data[_HEAD_BYTES:FIRST_BYTES])  # noqa: S302 - as trusted as the modules beside it
        *_, records, end, second, third = more
        if (second, third) != (_hash(data[FIRST_BYTES:end]), _hash(data[end:])) or (place, records) != (
            _place(package, target),
            _records(package, target),
        ):
            return False
        entries = marshal.loads(data[FIRST_BYTES:end])[0]  # noqa: S302 - as above
        return all(stamp == _stamp(stamp[0]) for stamp, _, _ in entries.values())
    except (OSError, ValueError, EOFError, TypeError):  # unknown: the modules are read one by one
        return False


def _head(body: bytes) -> bytes:
    from importlib.util import MAGIC_NUMBER

    return MAGIC_NUMBER + _hash(body)


def _hash(data: bytes) -> bytes:
    from _imp import source_hash

    return source_hash(HASH_KEY, data)


def _place(package: str, target: Target) -> tuple[str, ...]:
    """What a bundle is of: the plugin, and where the packages lie that its modules are from."""
    return (package, target.plugin, target.file)


def _stamp(file: str) -> tuple[str, int, int]:
    there = os.stat(file)
    return file, there.st_size, there.st_mtime_ns


def _folder(file: str) -> str:
    return os.path.dirname(file) if os.path.basename(file) == "__init__.py" else ""


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


class _Modules:
    """The modules of the SDK and of a plugin's package, as their sources say, and of Python's own what those import."""

    def __init__(self, package: str, target: Target) -> None:
        self.files = dict(_below("cnimeta", package))
        if _folder(target.file):
            self.files |= dict(_below(target.package, os.path.dirname(target.file)))
        self._main = target.plugin.partition(":")[0]
        self._outside = {"cnimeta", *(() if "." not in target.package else (target.package,))}
        """What a launcher has before it looks here."""
        self._trees: dict[str, Module] = {}
        self._imported: dict[tuple[str, bool], tuple[str, ...]] = {}

    def reachable(self) -> list[str]:
        """Every module that the plugin can come to import, itself and what a launcher imports among them."""
        found: dict[str, None] = {}
        waiting = [*_ALWAYS, _ASKING, self._main]
        while waiting:
            name = waiting.pop()
            if name not in found and name in self.files:
                found[name] = None
                waiting += [*self._imports(name, everywhere=True), name.rpartition(".")[0]]
        return [name for name in found if name not in self._outside]

    def usual(self, main: str) -> tuple[str, ...]:
        """What the plugin of the module `main` says of itself: `Plugin.usual`, as it is written there."""
        import ast

        for node in ast.walk(self._tree(main)) if main in self.files else ():
            if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == ["usual"]:
                return tuple(ast.literal_eval(node.value))
        return ()

    def in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        """Modules and all that they import at their top level, each after what it needs."""
        done: dict[str, None] = {}
        begun: set[str] = set()

        def visit(name: str) -> None:
            if name in begun or not self._has(name):
                return
            begun.add(name)
            visit(name.rpartition(".")[0])
            for other in self._imports(name, everywhere=False):
                visit(other)
            done[name] = None

        for name in names:
            visit(name)
        return tuple(name for name in done if name not in self._outside)

    def extensions(self, names: Iterable[str]) -> dict[str, str]:
        """The files of the modules in C that these import, anywhere in them."""
        from importlib.machinery import ExtensionFileLoader
        from importlib.util import find_spec

        found = {}
        for other in {other for name in names for other in self._imports(name, everywhere=True)}:
            spec = find_spec(other) if other in sys.stdlib_module_names else None
            if spec is not None and isinstance(spec.loader, ExtensionFileLoader) and spec.origin:
                found[other] = spec.origin
        return found

    def code(self, name: str) -> CodeType:
        """The code of a module without its documentation, which nobody reads at run time."""
        import ast

        tree = self._tree(name)
        ours = name.startswith(_OURS)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ours:
                _forget_types(node)
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if ast.get_docstring(node, clean=False) is not None:
                node.body[:1] = [ast.copy_location(ast.Pass(), node.body[0])]
        del self._trees[name]
        code: CodeType = compile(tree, self.files[name], "exec", _without_future(tree), dont_inherit=True)
        return code

    def _has(self, name: str) -> bool:
        """Whether there is such a module. Those of Python's own that are plain files come to be known here."""
        if name in sys.stdlib_module_names and name != "__future__" and name not in self.files:
            from importlib.machinery import SourceFileLoader
            from importlib.util import find_spec

            spec = find_spec(name)
            if spec is not None and isinstance(spec.loader, SourceFileLoader) and spec.origin:
                self.files[name] = spec.origin
        return name in self.files

    def _imports(self, name: str, *, everywhere: bool) -> tuple[str, ...]:
        """What a module names in its imports, and (`everywhere`) those of its functions."""
        if (name, everywhere) not in self._imported:
            self._imported[name, everywhere] = tuple(dict.fromkeys(_named(self._tree(name), everywhere=everywhere)))
        return self._imported[name, everywhere]

    def _tree(self, name: str) -> Module:
        import ast

        if name not in self._trees:
            with open(self.files[name], "rb") as source:
                self._trees[name] = ast.parse(source.read(), self.files[name])
        return self._trees[name]


def _named(module: Module, *, everywhere: bool) -> Iterator[str]:
    """The modules that imports name, and what may be one; not for type checkers."""
    import ast

    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not everywhere:
            continue
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            waiting += reversed([*ast.iter_child_nodes(node)])


def _without_future(module: Module) -> int:
    """Take out what is imported from __future__, which is a module to load; the compiler's flags that do the same."""
    import __future__

    import ast

    flags = 0
    for node in [*module.body]:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            module.body.remove(node)
            for alias in node.names:
                flags |= getattr(__future__, alias.name).compiler_flag
    return flags


def _forget_types(function: FunctionDef | AsyncFunctionDef) -> None:
    """Annotations are for type checkers: a fifth of what there is to load."""
    function.returns = None
    every = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    for argument in filter(None, (*every, function.args.vararg, function.args.kwarg)):
        argument.annotation = None


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
