"""Wrapping and unwrapping a configuration file in place.

Beside the file lie, under names that no runtime loads, its original, byte for byte, and what it was wrapped into: so
unwrapping can tell whether somebody has changed it since.
"""

from __future__ import annotations

import json
import os

from cnimeta.errors import DecodingFailure, IoFailure, shown
from cnimeta.host.files import replace_file, sync_folder
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
        _replace(original, before, mode)
        _replace(path + WRAPPED_SUFFIX, text, mode)
        _replace(path, text, mode)
    except OSError as error:
        raise IoFailure(f"cannot wrap {shown(path)}: {error.strerror}") from None
    return original


def _numbered(path: str) -> str:
    number = 1
    while os.path.lexists(f"{path}.{number}"):
        number += 1
    return f"{path}.{number}"


def unwrapped(path: str, *, force: bool = False) -> bytes:
    """What unwrapping would put back, byte for byte. Raises IoFailure (code 5) when it must not be done.

    `force`: also when the file is not what it was wrapped into, so that changes made since would be lost.
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
        return content
    if not is_wrapped(read_document(path)):
        raise IoFailure(
            f"{shown(path)} is not wrapped: something has replaced the file that was. To wrap the new one, use wrap"
            f" FILE; to go back to the old original, --force; to keep it as it is, remove {shown(original)}"
        )
    changed = _changes_since(path)
    if changed:
        raise IoFailure(
            f"{shown(path)} has been changed since it was wrapped ({changed}): repeat the change in"
            f" {shown(original)} and use --force"
        )
    return content


def _changes_since(path: str) -> str:
    """What differs from what was written when the file was wrapped; empty when nothing does, or that is not known."""
    try:
        before = read_document(path + WRAPPED_SUFFIX)
    except IoFailure:
        return ""
    return ", ".join(_differences("$", before, read_document(path)))


def _differences(place: str, before: JSON, after: JSON) -> list[str]:
    """The JSON paths at which two documents differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [line for key in keys for line in _differences(f"{place}.{key}", before.get(key), after.get(key))]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for index, (one, two) in pairs for line in _differences(f"{place}[{index}]", one, two)]
    return [] if before == after else [place]


def unwrap_file(path: str, *, force: bool = False) -> str:
    """Put the original back, byte for byte. Returns where it was kept. Without it nothing is changed."""
    unwrapped(path, force=force)
    original = path + ORIGINAL_SUFFIX
    try:
        os.rename(original, path)
        sync_folder(os.path.dirname(path))
        if os.path.lexists(path + WRAPPED_SUFFIX):
            os.unlink(path + WRAPPED_SUFFIX)
    except OSError as error:
        raise IoFailure(f"cannot unwrap {shown(path)}: {error.strerror}") from None
    return original


def _replace(path: str, data: bytes, mode: int) -> None:
    """Other programs read these files, and runtimes load whatever ends like a configuration."""
    replace_file(path, data, mode=mode, temporary=f".tmp-{os.getpid()}-", ending=".tmp")
