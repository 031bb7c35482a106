"""The files of a new plugin's package, from the templates: a name in, paths and texts out."""

from __future__ import annotations

import os

from cnimeta.errors import InvalidEnvironment, IoFailure, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "template")
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
_ALLOWED = _LETTERS | frozenset("0123456789-_")
_LONGEST = 64


def files(name: str) -> dict[str, str]:
    """By path within the package: the text of each file. Raises InvalidEnvironment (code 4) for a name that no module
    and no executable can have.
    """
    if not name or name[0] not in _LETTERS or not _ALLOWED.issuperset(name) or len(name) > _LONGEST:
        raise InvalidEnvironment(
            f"a plugin's name has small letters, digits, - and _ (a letter first, {_LONGEST} at most): {shown(name)}"
        )
    module = "cni_" + name.replace("-", "_")
    words = {
        "@NAME@": name,
        "@MODULE@": module,
        "@PROJECT@": "cni-" + name.replace("_", "-"),
        "@CLASS@": "".join(part.capitalize() for part in name.replace("-", "_").split("_")),
    }
    found = {}
    for path in _paths():
        with open(os.path.join(_TEMPLATE, path), encoding="utf-8") as file:
            text = file.read()
        where = path.removesuffix(".template").replace("package", module, 1).replace("dot-", ".")
        for mark, word in words.items():
            where, text = where.replace(mark, word), text.replace(mark, word)
        found[where] = text
    return found


def write(name: str, folder: str) -> list[str]:
    """Write the package into `folder`, which must be new or empty; the paths of its files.

    Raises IoFailure (code 5) where something is, or nothing can be written; InvalidEnvironment (code 4) as `files`.
    """
    texts = files(name)
    try:
        if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
            raise IoFailure(f"{folder} is there already and is no empty folder")
        for path, text in texts.items():
            target = os.path.join(folder, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise IoFailure(f"cannot write {error.filename or folder}: {error.strerror or error}") from None
    return sorted(texts)


def _paths() -> Iterator[str]:
    """Every template, by its path below the folder of templates."""
    for folder, _, names in sorted(os.walk(_TEMPLATE)):
        for name in sorted(names):
            if name.endswith(".template"):
                yield os.path.relpath(os.path.join(folder, name), _TEMPLATE)
