"""Putting hostport_alloc around an existing network configuration, and taking it off again. The planning is pure.

All plugins of the file become `delegates` of one hostport_alloc entry, as they stand. A portmap at the end moves to
the key `portmap`, so that it gets explicit and random mappings in one call; one further up keeps its place and gets
them there. The file keeps its name, so the runtime goes on loading it; the original lies beside it, byte for byte,
under a name no runtime loads.
"""

from __future__ import annotations

import json
import os

from cnimeta.errors import DecodingFailure, InvalidNetworkConfig, IoFailure, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields, without
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.allocate.expose import POD_ANNOTATIONS
from cnimeta_plugins.hostport_alloc.config import PLUGIN_TYPE, read_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cnimeta.spec.jsonio import JSON

ORIGINAL_SUFFIX = ".cnimeta-original"
"""Runtimes load .conf, .conflist and .json only."""


class Options(NamedTuple):
    """What to configure besides the delegates; empty values are left to the defaults."""

    ranges: Mapping[str, str]
    expose: Sequence[str] = ()
    kubeconfig: str | None = None
    """None: no `kubernetes` key. Empty: the key without a kubeconfig, so the node's own credentials."""
    policy: str = ""
    data_dir: str = ""


def wrapped(document: Mapping[str, JSON], options: Options) -> dict[str, JSON]:
    """The wrapped form of a .conf or .conflist document. Raises InvalidNetworkConfig (code 7)."""
    fields = Fields(document)
    is_list = fields.has("plugins")
    plugins = [dict(entry.raw) for entry in fields.objects("plugins")] if is_list else [dict(document)]
    if is_wrapped(document):
        raise InvalidNetworkConfig(f"the configuration has a plugin of type {PLUGIN_TYPE} already")
    if not plugins:
        raise InvalidNetworkConfig("$.plugins is empty: there is nothing to wrap")
    if not fields.text("name"):
        raise InvalidNetworkConfig("$.name is missing: a network configuration needs a name")
    name_and_version: dict[str, JSON] = {
        key: document[key] for key in document if key.lower() in ("cniversion", "name")
    }
    entry = _entry(plugins if is_list else [without(document, "cniVersion", "name")], options)
    read_settings(NetConf({**name_and_version, **entry}))  # what is written must be accepted
    if not is_list:
        return {**name_and_version, **entry}
    return {key: [entry] if key.lower() == "plugins" else value for key, value in document.items()}


def _entry(plugins: list[dict[str, JSON]], options: Options) -> dict[str, JSON]:
    delegates, portmap = plugins, None
    if len(plugins) > 1 and Fields(plugins[-1]).text("type") == "portmap":
        delegates, portmap = plugins[:-1], without(plugins[-1], "capabilities")
    capabilities: dict[str, JSON] = {"portMappings": True, POD_ANNOTATIONS: True}
    for plugin in plugins:
        capabilities.update({key: True for key, value in Fields(plugin).object("capabilities").raw.items() if value})
    entry: dict[str, JSON] = {"type": PLUGIN_TYPE, "capabilities": capabilities}
    if options.ranges:
        entry["ranges"] = dict(options.ranges)
    if options.expose:
        entry["expose"] = list(options.expose)
    entry["delegates"] = delegates
    if portmap is not None:
        entry["portmap"] = portmap
    if options.kubeconfig is not None:
        api = {"kubeconfig": options.kubeconfig, "policy": options.policy}
        entry["kubernetes"] = {key: value for key, value in api.items() if value}
    if options.data_dir:
        entry["dataDir"] = options.data_dir
    return entry


def is_wrapped(document: Mapping[str, JSON]) -> bool:
    """Whether hostport_alloc is in the document already, as a wrapper or in a chain."""
    fields = Fields(document)
    entries = list(fields.objects("plugins")) if fields.has("plugins") else [fields]
    return any(entry.text("type") == PLUGIN_TYPE for entry in entries)


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
    """Wrap the file in place. Returns where the original is kept. Nothing is changed when anything is wrong."""
    text = render(wrapped(read_document(path), options))
    original = path + ORIGINAL_SUFFIX
    if os.path.lexists(original):
        raise IoFailure(f"{shown(original)} exists: unwrap the file first, or remove it if it is of no use any more")
    try:
        with open(path, "rb") as file:
            before, mode = file.read(), os.fstat(file.fileno()).st_mode & 0o777
        _replace(original, before, mode)
        _replace(path, text.encode(), mode)
    except OSError as error:
        raise IoFailure(f"cannot wrap {shown(path)}: {error.strerror}") from None
    return original


def unwrap_file(path: str, *, force: bool = False) -> str:
    """Put the original back, byte for byte. Returns where it was kept. Without it nothing is changed."""
    original = path + ORIGINAL_SUFFIX
    if not os.path.exists(original):
        raise IoFailure(f"{shown(original)} does not exist: {shown(path)} was not wrapped here")
    if os.path.exists(path) and not force and not is_wrapped(read_document(path)):
        raise IoFailure(f"{shown(path)} is no longer the wrapped file: use --force to replace it by the original")
    try:
        os.rename(original, path)
        _sync_folder(path)
    except OSError as error:
        raise IoFailure(f"cannot unwrap {shown(path)}: {error.strerror}") from None
    return original


def _replace(path: str, data: bytes, mode: int) -> None:
    """Replace a file atomically and durably, with the given mode: other programs read these files."""
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
    _sync_folder(path)


def _sync_folder(path: str) -> None:
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
