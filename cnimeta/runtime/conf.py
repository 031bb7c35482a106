"""Network configurations as files: `.conf`, `.json` and `.conflist` (spec §1; libcni's conf.go).

A list is kept as data, unknown keys included: what a plugin gets is what the administrator wrote.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, TypeAlias

from cnimeta.errors import CniError, IncompatibleVersion, InvalidNetworkConfig, IoFailure, shown
from cnimeta.host.reading import retried, told
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec import validate
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import loads_object
from cnimeta.spec.version import ALL, CURRENT, IMPLIED, parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cnimeta.spec.jsonio import JSON

    Network: TypeAlias = "NetworkList | Mapping[str, JSON]"
    """What a Runtime takes for a network."""
else:
    Network = object

LIST_SUFFIX = ".conflist"
SINGLE_SUFFIXES = (".conf", ".json")
DEFAULT_FOLDER = "/etc/cni/net.d"


class NetworkList(NamedTuple):
    """A network: its plugins in the order of ADD, and how the runtime is to treat it."""

    name: str
    cni_version: str
    plugins: tuple[dict[str, JSON], ...]
    disable_check: bool = False
    disable_gc: bool = False

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Every capability that one of the plugins declares, sorted."""
        return tuple(sorted({name for plugin in self.plugins for name in declared(plugin)}))


def network_of(value: Network) -> NetworkList:
    """A network from the object of a configuration file: of a list (`plugins`), or of a single plugin (`type`).

    Raises InvalidNetworkConfig (7) and IncompatibleVersion (1).
    """
    if isinstance(value, NetworkList):
        return value
    return parse_list(dict(value)) if Fields(value).has("plugins") else parse_single(dict(value))


def load_file(path: str) -> NetworkList:
    """Read one file: a list, or (except from a `.conflist`) one plugin's configuration, which becomes a list of one.

    Raises IoFailure (5), DecodingFailure (6), InvalidNetworkConfig (7), IncompatibleVersion (1), each naming the file.
    """
    try:
        raw = loads_object(_read(path), "the network configuration")
        fields = Fields(raw)
        if not fields.has("plugins") and fields.has("type") and not path.endswith(LIST_SUFFIX):
            return parse_single(raw)
        return parse_list(raw, os.path.dirname(path))
    except CniError as error:
        raise type(error)(f"{path}: {error.msg}", error.details) from None


def parse_single(raw: dict[str, JSON]) -> NetworkList:
    """One plugin's configuration as a list of one."""
    fields = Fields(raw)
    name = validate.network_name(fields.text("name"))
    return NetworkList(name, choose_version(fields), (_plugin(raw, "$"),))


def parse_list(raw: dict[str, JSON], folder: str = "") -> NetworkList:
    """A list from its JSON object.

    The plugins of `<folder>/<name>/*.conf` come after its own, unless `folder` is empty or the list says
    `loadOnlyInlinedPlugins`.
    """
    fields = Fields(raw)
    name = validate.network_name(fields.text("name"))
    inlined = flag(fields, "loadOnlyInlinedPlugins")
    plugins = [_plugin(dict(entry.raw), entry.path) for entry in fields.objects("plugins")]
    if not plugins and (inlined or fields.has("plugins")):
        raise InvalidNetworkConfig("$.plugins is missing or empty: it lists the plugins of the network")
    if folder and not inlined:
        plugins += _beside(os.path.join(folder, name))
    if not plugins:
        raise InvalidNetworkConfig(
            f"$.plugins is missing, and there is no plugin in {shown(f'{folder}/{name}')} either"
        )
    return NetworkList(
        name, choose_version(fields), tuple(plugins), flag(fields, "disableCheck"), flag(fields, "disableGC")
    )


def choose_version(fields: Fields) -> str:
    """The highest of cniVersion and cniVersions that this runtime speaks. IncompatibleVersion (1) when there is none.

    libcni lets a single unknown cniVersion pass and leaves it to the plugins to refuse it; here nothing is run.
    """
    single = fields.text("cniVersion")
    offered = [(fields.at("cniVersion"), single)] if single else []
    offered += [
        (f"{fields.at('cniVersions')}[{index}]", text) for index, text in enumerate(fields.texts("cniVersions"))
    ]
    for path, text in offered:
        try:
            parse(text)
        except ValueError:
            raise InvalidNetworkConfig(f"{path} must be a version such as {CURRENT}, got {shown(text)}") from None
    usable = [text for _, text in offered if text in ALL]
    if offered and not usable:
        raise IncompatibleVersion(
            f"none of the configuration's versions is supported: {', '.join(text for _, text in offered)}; "
            f"this runtime speaks {', '.join(ALL)}"
        )
    return max(usable, key=parse, default=IMPLIED)


def flag(fields: Fields, key: str) -> bool:
    """A boolean that may also be written as the string "true" or "false"."""
    value = fields.get(key)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return fields.boolean(key)


def declared(plugin: Mapping[str, JSON]) -> list[str]:
    """The capabilities that a plugin's configuration declares, as written (libcni compares them letter by letter)."""
    return [key for key, value in Fields(plugin).object("capabilities").raw.items() if value is True]


def load_folder(folder: str = DEFAULT_FOLDER) -> Iterator[NetworkList]:
    """The networks of a folder by file name, which is the order container runtimes choose by.

    A broken file raises when its turn comes.
    """
    for name in config_names(folder, LIST_SUFFIX, *SINGLE_SUFFIXES):
        yield load_file(os.path.join(folder, name))


def find_network(name: str, folder: str = DEFAULT_FOLDER) -> NetworkList:
    """The network called `name`: the first such list, else the first such single configuration, as libcni looks for it.

    Broken files are passed over (libcni gives up at the first); they are in the error's details if nothing is found.
    One that cannot be read is an IoFailure (5): it may be the one that is looked for.
    """
    broken: list[str] = []
    for file_name in (*config_names(folder, LIST_SUFFIX), *config_names(folder, *SINGLE_SUFFIXES)):
        try:
            found = load_file(os.path.join(folder, file_name))
        except IoFailure:
            raise
        except CniError as error:
            broken.append(error.msg)
            continue
        if found.name == name:
            return found
    raise InvalidNetworkConfig(f"no network {shown(name)} in {folder}", "; ".join(broken))


def config_names(folder: str, *suffixes: str) -> list[str]:
    """The names of a folder's files with one of `suffixes`, sorted. IoFailure (5) when it cannot be read."""
    try:
        return sorted(
            entry.name for entry in os.scandir(folder) if entry.name.endswith(suffixes) and not entry.is_dir()
        )
    except OSError as error:
        raise IoFailure(f"cannot read {shown(folder)}: {error.strerror or error}") from None


def _beside(folder: str) -> list[dict[str, JSON]]:
    """The plugins of a list's own folder; none when there is no such folder."""
    found = told(shown(folder), lambda: retried(lambda: os.stat(folder)), (errno.ENOENT, errno.ENOTDIR))
    if found is None or not stat.S_ISDIR(found.st_mode):
        return []
    plugins = []
    for name in config_names(folder, ".conf"):
        path = os.path.join(folder, name)
        plugins.append(_plugin(loads_object(_read(path), shown(path)), f"{path}: $"))
    return plugins


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise IoFailure(f"cannot read {shown(path)}: {error.strerror or error}") from None


def _plugin(raw: dict[str, JSON], path: str) -> dict[str, JSON]:
    """A plugin's configuration, its type and capabilities looked at."""
    fields = Fields(raw, path)
    validate.plugin_type(fields.text("type"), fields.at("type"))
    capabilities = fields.object("capabilities")
    for key in capabilities.raw:
        capabilities.boolean(key)
    return raw
