"""Which configuration and which state a command is about: `--conf`, `--data-dir`, or the runtime's folder."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cnimeta.delegate.find import split_path
from cnimeta.errors import CniError, InvalidNetworkConfig, legible, shown
from cnimeta.ports.mapper import DATA_DIR
from cnimeta.spec.fields import Fields
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.config import LOCK_TIMEOUT_S, PLUGIN_TYPE, read_settings
from cnimeta_plugins.hostport_alloc.operator.wrapfile import read_document

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

CONF_DIR = "/etc/cni/net.d"
OWN_NAME = "00-cnimeta.conflist"
"""The configuration of our own that `wrap --own` writes there."""


def settings_of(args: argparse.Namespace) -> Settings | None:
    """The settings of `conf_of`."""
    found = conf_of(args)
    return read_settings(found) if found is not None else None


def conf_of(args: argparse.Namespace) -> NetConf | None:
    """The first hostport_alloc configuration in --conf, or in the runtime's folder; None when there is none."""
    given = getattr(args, "conf", None)
    found = entry_of(read_document(given)) if given else None
    if given and found is None:
        raise InvalidNetworkConfig(f"{shown(given)} has no plugin of type {PLUGIN_TYPE}")
    for name in () if given else _names(CONF_DIR):
        try:
            found = entry_of(read_document(os.path.join(CONF_DIR, name)))
        except CniError:
            continue  # not ours to judge
        if found is not None:
            break
    return found


def _names(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(name for name in names if name.endswith((".conf", ".conflist", ".json")))


def entry_of(document: Mapping[str, JSON]) -> NetConf | None:
    """The configuration of hostport_alloc in a network's, as the runtime would hand it over."""
    fields = Fields(document)
    head: dict[str, JSON] = {"name": fields.text("name"), "cniVersion": fields.text("cniVersion")}
    for entry in fields.objects("plugins") if fields.has("plugins") else [fields]:
        if entry.text("type") == PLUGIN_TYPE:
            return NetConf({**entry.raw, **head})
    return None


def data_dir(args: argparse.Namespace, settings: Settings | None) -> str:
    """Where the state is."""
    folder = getattr(args, "data_dir", None) or (settings.data_dir if settings is not None else DATA_DIR)
    return os.path.abspath(folder)


def bin_dirs(args: argparse.Namespace) -> tuple[str, ...]:
    """The folders of plugins that were given; none: those of each ADD."""
    return tuple(os.path.abspath(folder) for folder in split_path(getattr(args, "bin_dir", None) or ()))


def opened(args: argparse.Namespace, wiring: Wiring) -> tuple[Settings | None, Store]:
    """The configuration, if there is one, and the state."""
    settings = settings_of(args)
    timeout_s = settings.lock_timeout_s if settings is not None else LOCK_TIMEOUT_S
    return settings, wiring.store(data_dir(args, settings), timeout_s, log)


def log(line: str) -> None:
    """To people, beside what is printed."""
    print(legible(line), file=sys.stderr)


def wants_json(args: argparse.Namespace) -> bool:
    """Whether --json was given."""
    return bool(getattr(args, "json", False))
