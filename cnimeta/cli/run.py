"""`cnimeta run`: a network applied to a namespace by hand, as cnitool does it and with its cache.

cnitool's variables CNI_PATH, NETCONFPATH, CAP_ARGS, CNI_ARGS and CNI_IFNAME are the defaults of the options.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from typing import TYPE_CHECKING

from cnimeta.delegate.find import DEFAULT_BIN_DIR, split_path
from cnimeta.errors import CniError, DecodingFailure, InvalidEnvironment
from cnimeta.spec import cniargs
from cnimeta.spec.convert import render_result
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta.spec.version import CURRENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.plugin.base import Commands
    from cnimeta.runtime import Container, NetworkList, Runtime
    from cnimeta.spec.jsonio import JSON

VERBS = ("add", "del", "check", "gc", "status", "version")


def add_commands(commands: Commands) -> None:
    """Add `run`."""
    parser = commands.add_parser(
        "run",
        help="run a network's plugins: " + ", ".join(VERBS),
        description="Run a network's plugins on a namespace, as a container runtime does.",
    )
    parser.add_argument("verb", choices=VERBS, help="what the plugins are asked")
    _add_network(parser)
    _add_container(parser)
    _add_behaviour(parser)
    parser.set_defaults(run=run)


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which network").add_mutually_exclusive_group(required=True)
    group.add_argument("--conflist", metavar="FILE", help="a .conflist, .conf or .json file")
    group.add_argument("--name", metavar="NETWORK", help="a network of --net-dir")
    parser.add_argument(
        "--net-dir", metavar="DIR", default=os.environ.get("NETCONFPATH") or "/etc/cni/net.d", help="(%(default)s)"
    )


def _add_container(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which container (add, del, check)")
    group.add_argument("--netns", default="", metavar="PATH", help="its network namespace")
    group.add_argument("--container-id", default="", metavar="ID", help="made from --netns, as cnitool does, if unset")
    group.add_argument("--ifname", metavar="NAME", default=os.environ.get("CNI_IFNAME") or "eth0", help="(%(default)s)")
    group.add_argument("--args", metavar="K=V;K=V", default=os.environ.get("CNI_ARGS", ""), help="CNI_ARGS")
    group.add_argument(
        "--capability-args",
        metavar="JSON",
        default=os.environ.get("CAP_ARGS", ""),
        help="""such as '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'""",
    )
    group = parser.add_argument_group("which attachments stay (gc)").add_mutually_exclusive_group()
    group.add_argument("--valid", action="append", metavar="ID,IFNAME", help="this one; repeatable")
    group.add_argument("--none-valid", action="store_true", help="none: remove everything of the network")


def _add_behaviour(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    group.add_argument(
        "--bin-dir", "--path", action="append", metavar="DIR[:DIR]", help="where plugins are; repeatable (CNI_PATH)"
    )
    group.add_argument("--cache-dir", default="/var/lib/cni", metavar="DIR", help="libcni's cache (%(default)s)")
    group.add_argument(
        "--timeout", type=_seconds, default=120.0, metavar="S", help="for each plugin; 0 for none (%(default)s)"
    )
    group.add_argument(
        "--trace", action="store_true", help="print what each plugin got and gave, and how long it took, to stderr"
    )
    group.add_argument("--no-undo", action="store_true", help="add: leave a failed chain as it is")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 86400:
        raise argparse.ArgumentTypeError("seconds from 0 to 86400")
    return value


def run(args: argparse.Namespace) -> int:
    """Run one verb; a failure is the CNI error object on stdout and exit status 1, or 2 for an option that is wrong."""
    version = CURRENT
    try:
        network = _network(args)
        version = network.cni_version
        answer = _recorded(args, network) if args.trace else _serve(args, network, _runtime(args))
    except CniError as error:
        print(dumps(error.as_json(version)))
        return 2 if isinstance(error, InvalidEnvironment) else 1
    if answer is not None:
        print(json.dumps(answer, indent=4))
    return 0


def _recorded(args: argparse.Namespace, network: NetworkList) -> JSON:
    """As `_serve`, with what was seen of the plugins on stderr, whatever became of the verb."""
    from cnimeta.runtime.recording import Recording, picture, story

    runtime = _runtime(args)
    recording = Recording(runtime.executor)
    runtime.executor = recording
    try:
        return _serve(args, network, runtime)
    finally:
        print(story(recording.steps), picture(recording.steps), sep="\n\n", file=sys.stderr)


def _serve(args: argparse.Namespace, network: NetworkList, runtime: Runtime) -> JSON:
    """Run the verb; what there is to print."""
    if args.verb == "add":
        return render_result(runtime.add(network, _container(args), undo=not args.no_undo), network.cni_version)
    if args.verb == "del":
        runtime.delete(network, _container(args))
    elif args.verb == "check":
        runtime.check(network, _container(args))
    elif args.verb == "gc":
        runtime.gc(network, _valid(args))
    elif args.verb == "status":
        runtime.status(network)
    else:
        plugins: dict[str, JSON] = {name: list(versions) for name, versions in runtime.validate(network).items()}
        answer: dict[str, JSON] = {"name": network.name, "cniVersion": network.cni_version, "plugins": plugins}
        return answer
    return None


def _network(args: argparse.Namespace) -> NetworkList:
    from cnimeta.runtime import find_network, load_file

    return load_file(args.conflist) if args.conflist else find_network(args.name, args.net_dir)


def _runtime(args: argparse.Namespace) -> Runtime:
    from cnimeta.runtime import Runtime

    folders = split_path(args.bin_dir or [os.environ.get("CNI_PATH") or DEFAULT_BIN_DIR])
    return Runtime(folders, args.cache_dir, timeout_s=args.timeout or None)


def _container(args: argparse.Namespace) -> Container:
    from cnimeta.runtime import Container

    netns = absolute(args.netns) if args.netns else ""
    if not netns and not args.container_id:
        raise InvalidEnvironment("--netns is missing: the path of the container's network namespace")
    capability_args = {}
    if args.capability_args:
        try:
            capability_args = loads_object(args.capability_args, "--capability-args")
        except DecodingFailure as error:
            raise InvalidEnvironment(error.msg) from None
    return Container(
        args.container_id or default_container_id(netns),
        netns,
        args.ifname,
        tuple(cniargs.parse(args.args).items()),
        capability_args,
    )


def absolute(netns: str) -> str:
    """The path as cnitool sees it before it makes a container ID of it."""
    return "/" + os.path.abspath(netns).lstrip("/")


def default_container_id(netns: str) -> str:
    """cnitool's: the same namespace path gives the same container."""
    return f"cnitool-{hashlib.sha512(os.fsencode(netns)).hexdigest()[:20]}"


def _valid(args: argparse.Namespace) -> Sequence[tuple[str, str]]:
    if not args.valid and not args.none_valid:
        raise InvalidEnvironment("gc removes what is not valid: name each --valid ID,IFNAME, or say --none-valid")
    pairs = []
    for text in args.valid or ():
        container_id, _, ifname = text.partition(",")
        if not container_id or not ifname:
            raise InvalidEnvironment(f"--valid {text}: write CONTAINER_ID,IFNAME")
        pairs.append((container_id, ifname))
    return pairs
