"""Network configurations as files: `.conf`, `.json` and `.conflist` (spec §1; libcni's conf.go).

A list is kept as data, unknown keys included: what a plugin gets is what the administrator wrote.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cnimeta._record import NamedTuple
from cnimeta.errors import CniError, InvalidNetworkConfig, IoFailure, shown
from cnimeta.spec import validate
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import loads_object
from cnimeta.spec.version import ALL, CURRENT, IMPLIED, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta.spec.jsonio import JSON

SUFFIXES = (".conf", ".conflist", ".json")
DEFAULT_FOLDER = "/etc/cni/net.d"


class NetworkList(NamedTuple):
    """A network: its plugins in the order of ADD, and how the runtime is to treat it."""

    name: str
    cni_version: str
    plugins: tuple[dict[str, JSON], ...]
    disable_check: bool = False
    disable_gc: bool = False


def load_file(path: str) -> NetworkList:
    """Read one file: a list, or a single plugin's configuration, which becomes a list of one.

    Raises IoFailure (5), DecodingFailure (6) or InvalidNetworkConfig (7), each naming the file.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise IoFailure(f"cannot read {shown(path)}: {error.strerror or error}") from None
    try:
        return parse_list(loads_object(data, "the network configuration"), os.path.dirname(path))
    except CniError as error:
        raise type(error)(f"{path}: {error.msg}", error.details) from None


def parse_list(raw: dict[str, JSON], folder: str = "") -> NetworkList:
    """A list from its JSON object. Plugins of `<folder>/<name>/*.conf` are appended unless the list forbids it."""
    fields = Fields(raw)
    if not fields.has("plugins") and fields.has("type"):
        version = choose_version(fields)
        name = validate.network_name(fields.text("name"))
        validate.plugin_type(fields.text("type"))
        return NetworkList(name, version, (dict(raw),))
    name = validate.network_name(fields.text("name"))
    inlined = flag(fields, "loadOnlyInlinedPlugins")
    plugins = [dict(entry.raw) for entry in fields.objects("plugins")]
    if inlined and not fields.has("plugins"):
        raise InvalidNetworkConfig("$.loadOnlyInlinedPlugins is set, but $.plugins is missing")
    if not inlined and folder:
        plugins += _beside(os.path.join(folder, name))
    if not plugins:
        raise InvalidNetworkConfig("$.plugins is empty: a network needs at least one plugin")
    for index, plugin in enumerate(plugins):
        entry = Fields(plugin, f"$.plugins[{index}]")
        validate.plugin_type(entry.text("type"), entry.at("type"))
    return NetworkList(
        name, choose_version(fields), tuple(plugins), flag(fields, "disableCheck"), flag(fields, "disableGC")
    )


def choose_version(fields: Fields) -> str:
    """The highest of cniVersion and cniVersions that this runtime speaks; a single unknown cniVersion is refused."""
    single = fields.text("cniVersion")
    offered = fields.texts("cniVersions")
    for index, text in enumerate([single or IMPLIED, *offered]):
        try:
            parse(text)
        except ValueError:
            path = fields.at("cniVersion") if index == 0 else f"{fields.at('cniVersions')}[{index - 1}]"
            raise InvalidNetworkConfig(f"{path} must be a version such as {CURRENT}, got {shown(text)}") from None
    if not offered:
        return single or IMPLIED
    usable = [text for text in (*offered, *filter(None, [single])) if text in ALL]
    if not usable:
        raise InvalidNetworkConfig(f"{fields.at('cniVersions')}: none of {offered} is supported here")
    return max(usable, key=parse)


def flag(fields: Fields, key: str) -> bool:
    """A boolean that may also be written as the string "true" or "false"."""
    value = fields.get(key)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return fields.boolean(key)


def load_folder(folder: str = DEFAULT_FOLDER) -> Iterator[NetworkList]:
    """Every valid network of a folder in the runtime's order (by file name); a file that cannot be read raises."""
    for name in _config_names(folder):
        yield load_file(os.path.join(folder, name))


def find_network(name: str, folder: str = DEFAULT_FOLDER) -> NetworkList:
    """The first network called `name`; files that are broken are passed over unless it is not found."""
    broken: list[str] = []
    for file_name in _config_names(folder):
        try:
            found = load_file(os.path.join(folder, file_name))
        except CniError as error:
            broken.append(error.msg)
            continue
        if found.name == name:
            return found
    raise InvalidNetworkConfig(f"no network {shown(name)} in {folder}", "; ".join(broken))


def _config_names(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(SUFFIXES))
    except OSError as error:
        raise IoFailure(f"cannot read {shown(folder)}: {error.strerror or error}") from None


def _beside(folder: str) -> list[dict[str, JSON]]:
    """The plugins of a list's own folder; none when there is no such folder."""
    if not os.path.isdir(folder):
        return []
    plugins = []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".conf"):
            with open(os.path.join(folder, name), "rb") as file:
                plugins.append(loads_object(file.read(), f"{folder}/{name}"))
    return plugins
