"""`cnimeta run`: a network applied to a namespace by hand, as cnitool does it and with its cache."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import TYPE_CHECKING

from cnimeta.errors import CniError, DecodingFailure, InvalidEnvironment
from cnimeta.spec import cniargs
from cnimeta.spec.convert import render_result
from cnimeta.spec.jsonio import dumps, loads_object

if TYPE_CHECKING:
    import argparse

    from cnimeta.runtime import Container, NetworkList, Runtime

VERBS = ("add", "del", "check", "gc", "status", "version")
_NEEDS_CONTAINER = ("add", "del", "check")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `run`."""
    parser = commands.add_parser("run", help="run a network's plugins: " + ", ".join(VERBS))
    parser.add_argument("verb", choices=VERBS)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--conflist", metavar="FILE", help="a .conflist, .conf or .json file")
    source.add_argument("--name", metavar="NETWORK", help="a network of --net-dir, by name")
    parser.add_argument("--net-dir", default=os.environ.get("NETCONFPATH", "/etc/cni/net.d"), help="(%(default)s)")
    parser.add_argument("--netns", default="", metavar="PATH", help="the container's network namespace")
    parser.add_argument("--container-id", default="", metavar="ID", help="made from --netns, as cnitool does, if unset")
    parser.add_argument("--ifname", default=os.environ.get("CNI_IFNAME", "eth0"), help="(%(default)s)")
    parser.add_argument("--args", default=os.environ.get("CNI_ARGS", ""), metavar="K=V;K=V", help="CNI_ARGS")
    parser.add_argument(
        "--capability-args", default=os.environ.get("CAP_ARGS", ""), metavar="JSON", help='{"portMappings": [...]}'
    )
    parser.add_argument(
        "--bin-dir", "--path", action="append", metavar="DIR", help="a folder of plugins; repeatable (CNI_PATH)"
    )
    parser.add_argument("--cache-dir", default="/var/lib/cni", metavar="DIR", help="libcni's cache (%(default)s)")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="for each plugin (%(default)s)")
    parser.add_argument(
        "--valid", action="append", default=[], metavar="ID,IFNAME", help="gc: an attachment to keep; repeatable"
    )
    parser.add_argument("--no-undo", action="store_true", help="add: leave a failed chain as it is")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run one verb; a failure is the CNI error object on stdout and exit status 1."""
    version = "1.1.0"
    try:
        network = _network(args)
        version = network.cni_version
        _serve(args, network, _runtime(args))
    except CniError as error:
        print(dumps(error.as_json(version)))
        return 1
    return 0


def _serve(args: argparse.Namespace, network: NetworkList, runtime: Runtime) -> None:
    if args.verb == "add":
        result = runtime.add(network, _container(args), undo=not args.no_undo)
        print(dumps(render_result(result, network.cni_version)))
    elif args.verb == "del":
        runtime.delete(network, _container(args))
    elif args.verb == "check":
        runtime.check(network, _container(args))
    elif args.verb == "gc":
        runtime.gc(network, [_pair(text) for text in args.valid])
    elif args.verb == "status":
        runtime.status(network)
    else:
        runtime.validate(network)
        print(f"{network.name}: every plugin supports {network.cni_version}")


def _network(args: argparse.Namespace) -> NetworkList:
    from cnimeta.runtime import find_network, load_file

    if args.conflist:
        return load_file(args.conflist)
    if args.name:
        return find_network(args.name, args.net_dir)
    raise InvalidEnvironment("name a network: --conflist FILE, or --name NETWORK of --net-dir")


def _runtime(args: argparse.Namespace) -> Runtime:
    from cnimeta.runtime import Runtime

    folders = args.bin_dir or os.environ.get("CNI_PATH", "/opt/cni/bin").split(":")
    return Runtime(
        [folder for item in folders for folder in item.split(":") if folder],
        args.cache_dir,
        timeout_s=args.timeout,
        log=lambda line: print(line, file=sys.stderr),
    )


def _container(args: argparse.Namespace) -> Container:
    from cnimeta.runtime import Container

    if not args.netns and not (args.verb == "del" and args.container_id):
        raise InvalidEnvironment("--netns is missing: the path of the container's network namespace")
    capability_args = {}
    if args.capability_args:
        try:
            capability_args = loads_object(args.capability_args, "--capability-args")
        except DecodingFailure as error:
            raise InvalidEnvironment(error.msg) from None
    return Container(
        args.container_id or default_container_id(args.netns),
        args.netns,
        args.ifname,
        tuple(cniargs.parse(args.args).items()),
        capability_args,
    )


def default_container_id(netns: str) -> str:
    """cnitool's: the same namespace path gives the same container."""
    return f"cnitool-{hashlib.sha512(netns.encode()).hexdigest()[:20]}"


def _pair(text: str) -> tuple[str, str]:
    container_id, comma, ifname = text.partition(",")
    if not comma or not ifname:
        raise InvalidEnvironment(f"--valid {text}: write CONTAINER_ID,IFNAME")
    return container_id, ifname
