"""`cnimeta ports reserve`, what the doctor says of reserved ports, and what uninstalling gives back."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from cnimeta.errors import InvalidEnvironment, InvalidNetworkConfig, counted
from cnimeta.ports.mapper import DATA_DIR
from cnimeta_plugins.hostport_alloc.allocate.ranges import ports_of_all, text_of
from cnimeta_plugins.hostport_alloc.config import read_data_dir
from cnimeta_plugins.hostport_alloc.operator.conf import conf_of, data_dir, settings_of, wants_json
from cnimeta_plugins.hostport_alloc.state.reservation import FILE

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from cnimeta.spec.netconf import NetConf
    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortSet
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


def add_reserve_options(parser: argparse.ArgumentParser) -> None:
    """The options of `reserve`."""
    parser.add_argument("--remove", action="store_true", help="give back what is ours")
    parser.add_argument(
        "--adopt", action="store_true", help="take the ranges' ports that are reserved for ours, when the mark was lost"
    )


def reserve(args: argparse.Namespace, wiring: Wiring) -> int:
    """`ports reserve`."""
    if args.remove and args.adopt:
        raise InvalidEnvironment("--remove and --adopt are both given: keep one of them")
    settings = settings_of(args)
    reservation = wiring.reservation(data_dir(args, settings))
    if args.remove:
        ours, said = reservation.give_back(), "not reserved any more"
    else:
        conf = conf_of(args)
        if settings is None or conf is None:
            raise InvalidNetworkConfig("no configuration was found: use --conf")
        if not settings.reserve_ports:
            raise InvalidNetworkConfig("$.reservePorts is not true in the configuration")
        keep = reservation.adopt if args.adopt else reservation.keep
        ours, said = keep(conf.name, ports_of_all(wiring.on_node(settings).ranges)), "reserved by us"
    if wants_json(args):
        print(json.dumps({"ours": "" if args.remove else text_of(ours), "others": text_of(reservation.foreign())}))
    else:
        print(f"{said}: {text_of(ours) or 'none'}; reserved by others: {text_of(reservation.foreign()) or 'none'}")
    return 0


def remarks(wiring: Wiring, conf: NetConf, settings: Settings) -> Iterator[str]:
    """For the doctor: what of the ranges is not as the configuration has it."""
    reservation = wiring.reservation(settings.data_dir)
    if not settings.reserve_ports:
        if reservation.ours():
            yield "ports of an earlier configuration are reserved: `cnimeta ports reserve --remove` gives them back"
        return
    ports = ports_of_all(settings.ranges)
    foreign, missing = reservation.foreign() & ports, reservation.missing(ports)
    if foreign:
        yield (
            f"{_counted(foreign)} of the ranges ({text_of(foreign)}) in net.ipv4.ip_local_reserved_ports are not ours"
            " and not given out; if that was this plugin once, `cnimeta ports reserve --adopt` takes them back"
        )
    if missing:
        yield (
            f"{_counted(missing)} of the ranges are not in net.ipv4.ip_local_reserved_ports: the next ADD of"
            f" {conf.name} or `cnimeta ports reserve` puts them there"
        )


def _counted(ports: PortSet) -> str:
    return counted(ports.bit_count(), "port")


def leave(wiring: Wiring, confs: Sequence[NetConf]) -> Iterator[str]:
    """As `Plugin.leave`: the ports that were reserved, of the default folder and of those that are configured."""
    for folder in dict.fromkeys([DATA_DIR, *(read_data_dir(conf.fields) for conf in confs)]):
        if os.path.lexists(os.path.join(folder, FILE)):
            ours = wiring.reservation(folder).give_back()
            if ours:
                yield f"net.ipv4.ip_local_reserved_ports: {text_of(ours)} given back"
