"""Wrapping and unwrapping a configuration file in place.

Beside the file lie, under names that no runtime loads, its original, byte for byte, and what it was wrapped into: so
unwrapping can tell whether somebody has changed it since.
"""

from __future__ import annotations

import json
import os

from cnimeta.errors import DecodingFailure, IoFailure, shown
from cnimeta.host.files import replace_file, sync_folder
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.hostport_alloc.operator import unwrap
from cnimeta_plugins.hostport_alloc.operator.wrap import is_wrapped, wrapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.operator.wrap import Options

ORIGINAL_SUFFIX = ".cnimeta-original"
WRAPPED_SUFFIX = ".cnimeta-wrapped"
"""Never change either: files of an earlier version must be found. Runtimes load .conf, .conflist and .json only."""


def read_document(path: str) -> dict[str, JSON]:
    """Read a configuration file. Raises IoFailure (5) or DecodingFailure (6), naming the file."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except OSError as error:
        raise IoFailure(f"cannot read {shown(path)}: {error.strerror}") from None
    except ValueError as error:
        raise DecodingFailure(f"{shown(path)} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise DecodingFailure(f"{shown(path)} must hold a JSON object")
    return document


def render(document: Mapping[str, JSON]) -> str:
    """The text of a configuration file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def wrap_file(path: str, options: Options) -> str:
    """Wrap the file in place. Returns where the original is kept. Nothing is changed when anything is wrong.

    An original that lies there already is of an earlier file of this name, which something else has replaced by the
    one that is wrapped now: it is kept under a number.
    """
    text = render(wrapped(read_document(path), options)).encode()
    original = path + ORIGINAL_SUFFIX
    try:
        with open(path, "rb") as file:
            before, mode = file.read(), os.fstat(file.fileno()).st_mode & 0o777
        if os.path.lexists(original):
            os.rename(original, _numbered(original))
        replace(original, before, mode)
        replace(path + WRAPPED_SUFFIX, text, mode)
        replace(path, text, mode)
    except OSError as error:
        raise IoFailure(f"cannot wrap {shown(path)}: {error.strerror}") from None
    return original


def _numbered(path: str) -> str:
    number = 1
    while os.path.lexists(f"{path}.{number}"):
        number += 1
    return f"{path}.{number}"


class Unwrapping(NamedTuple):
    """What unwrapping puts back, and what it has to say."""

    content: bytes
    """The original byte for byte, unless something was edited since."""
    told: tuple[str, ...] = ()
    """What becomes of each edit."""
    edited: bool = False
    """Whether the content is not the original's."""


def unwrapped(path: str, *, force: bool = False) -> Unwrapping:
    """What unwrapping would put back. Raises IoFailure (code 5) when it must not be done.

    Edits since wrapping are taken over. `force`: the original as it was, whatever has become of the file.
    """
    original = path + ORIGINAL_SUFFIX
    try:
        with open(original, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise IoFailure(f"{shown(original)} does not exist: {shown(path)} was not wrapped here") from None
    except OSError as error:
        raise IoFailure(f"cannot read {shown(original)}: {error.strerror}") from None
    if force or not os.path.exists(path):
        return Unwrapping(content)
    now = read_document(path)
    if not is_wrapped(now):
        raise IoFailure(
            f"{shown(path)} is not wrapped: something has replaced the file that was. To wrap the new one, use wrap"
            f" FILE; to go back to the old original, --force; to keep it as it is, remove {shown(original)}"
        )
    before = _as_wrapped(path)
    if before is None or before == now:
        return Unwrapping(content)
    found = unwrap.unwrapped(read_document(original), before, now)
    if found.conflicts:
        raise IoFailure(
            f"{shown(path)} and {shown(original)} were both changed since ({', '.join(found.conflicts)}): make them"
            " agree, or use --force to go back to the original"
        )
    told = tuple(f"{place} was changed and goes with hostport_alloc" for place in found.own)
    if found.document == read_document(original):
        return Unwrapping(content, told)
    kept = ", ".join(unwrap.differences("$", read_document(original), found.document))
    return Unwrapping(render(found.document).encode(), (f"edits are kept: {kept}", *told), edited=True)


def _as_wrapped(path: str) -> dict[str, JSON] | None:
    """What was written when the file was wrapped; None when that is not known."""
    try:
        return read_document(path + WRAPPED_SUFFIX)
    except IoFailure:
        return None


def unwrap_file(path: str, *, force: bool = False) -> tuple[str, ...]:
    """Put the original back, with what was edited since. Returns what there is to say of that.

    Whenever it ends, the file is there and whole: the file first, then what lay beside it.
    """
    found = unwrapped(path, force=force)
    original = path + ORIGINAL_SUFFIX
    try:
        if not found.edited:
            os.rename(original, path)
        else:
            replace(path, found.content, os.stat(path).st_mode & 0o777)
        for suffix in (ORIGINAL_SUFFIX, WRAPPED_SUFFIX):
            if os.path.lexists(path + suffix):
                os.unlink(path + suffix)
        sync_folder(os.path.dirname(path))
    except OSError as error:
        raise IoFailure(f"cannot unwrap {shown(path)}: {error.strerror}") from None
    return found.told


def replace(path: str, data: bytes, mode: int) -> None:
    """Other programs read these files, and runtimes load whatever ends like a configuration."""
    replace_file(path, data, mode=mode, temporary=f".tmp-{os.getpid()}-", ending=".tmp")
