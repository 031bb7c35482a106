"""`cnimeta wrap`: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from cnimeta.errors import CniError, InvalidEnvironment, InvalidNetworkConfig, counted, shown
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.allocate.ranges import refuse_reserved
from cnimeta_plugins.hostport_alloc.config import read_data_dir, read_settings, refuse_unreadable_credentials
from cnimeta_plugins.hostport_alloc.operator import own, wrapfile
from cnimeta_plugins.hostport_alloc.operator.conf import entry_of, log
from cnimeta_plugins.hostport_alloc.operator.examine import on_record
from cnimeta_plugins.hostport_alloc.operator.wrap import Options, alone, wrapped

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


def wrap(args: argparse.Namespace, wiring: Wiring) -> int:
    """`wrap`."""
    if args.keep:
        own.Keeper(_folder(args), wiring.clock, log).keep()
    if args.own:
        return _give_back(args, wiring) if args.unwrap else _own(args, wiring)
    return _unwrap(args, wiring) if args.unwrap else _in_place(args, wiring)


def _unwrap(args: argparse.Namespace, wiring: Wiring) -> int:
    found = wrapfile.unwrapped(args.file, force=args.force)
    for line in found.told:
        log(f"cnimeta: {line}")
    if _only_shown(args, args.file, found.content.decode("utf-8", "replace")):
        return 0
    _warn_of_live(args.file, wiring)
    wrapfile.unwrap_file(args.file, force=args.force)
    _say(
        args.json,
        {"action": "unwrap", "file": args.file},
        f"{args.file} is {'without hostport_alloc' if found.told else 'as it was'}",
    )
    return 0


def _in_place(args: argparse.Namespace, wiring: Wiring) -> int:
    options = _options(args)
    document = wrapped(wrapfile.read_document(args.file), options)
    _refuse_what_add_would(document, wiring)
    if _only_shown(args, args.file, wrapfile.render(document)):
        return 0
    _tell_of_live(document, wiring)
    original = wrapfile.wrap_file(args.file, options)
    body = {"action": "wrap", "file": args.file, "original": original}
    _say(args.json, body, f"{args.file} is wrapped; the original is {original}")
    return 0


def _own(args: argparse.Namespace, wiring: Wiring) -> int:
    options = _options(args)
    if not _is_given(args):  # derived anew: what it was made with stays
        before = own.ownership(_folder(args))
        options = options if before is None else before.options
    document = own.derived(wrapfile.read_document(args.file), options)
    _refuse_what_add_would(document, wiring)
    path = os.path.join(_folder(args), own.NAME)
    if _only_shown(args, path, wrapfile.render(document)):
        return 0
    _tell_of_live(document, wiring)
    made = own.take(args.file, options)
    body = {"action": "own", "file": made.path, "original": made.source}
    _say(args.json, body, f"{made.path} is the first configuration now, derived from {made.source}, which stays")
    return 0


def _give_back(args: argparse.Namespace, wiring: Wiring) -> int:
    folder = _folder(args)
    path = os.path.join(folder, own.NAME)
    if _only_shown(args, path, ""):
        return 0
    _warn_of_live(path, wiring)
    made = own.give_back(folder)
    body = {"action": "unwrap", "file": made.path, "original": made.source}
    _say(args.json, body, f"{made.path} is gone; {made.source} is the network's own again")
    return 0


def _only_shown(args: argparse.Namespace, path: str, after: str) -> bool:
    """Whether something was only to be shown: the result, or what differs."""
    if args.only_print:
        sys.stdout.write(after)
    if args.diff:
        sys.stdout.write(_diff(path, after))
    return bool(args.only_print or args.diff)


def _diff(path: str, after: str) -> str:
    """A unified diff from the file as it is."""
    import difflib

    from cnimeta.terminal.colour import painted

    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            before = file.read()
    except FileNotFoundError:
        before = ""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), path, f"{path} (new)", lineterm="")
    colours = {"+": "ok", "-": "fail", "@": "faint"}
    return "".join((painted(line, colours[line[0]]) if line[:1] in colours else line) + "\n" for line in lines)


def _live(document: Mapping[str, JSON], wiring: Wiring) -> int:
    """How many containers have host ports on record; 0 where that cannot be told, which others complain of."""
    conf = entry_of(document)
    try:
        return 0 if conf is None else len(set(on_record(wiring, read_data_dir(conf.fields))))
    except CniError:
        return 0


def _tell_of_live(document: Mapping[str, JSON], wiring: Wiring) -> None:
    count = _live(document, wiring)
    if count:
        log(f"cnimeta: {counted(count, 'container')} of an earlier configuration have host ports, and keep them")


def _warn_of_live(path: str, wiring: Wiring) -> None:
    try:
        count = _live(wrapfile.read_document(path), wiring)
    except CniError:
        return
    if count:
        log(
            f"cnimeta: warning: {counted(count, 'container')} on record: their DEL does not reach hostport_alloc any"
            " more, and their ports stay taken until `cnimeta ports release CONTAINER`, or a reboot"
        )


def _folder(args: argparse.Namespace) -> str:
    """Where the network's file lies, and ours."""
    path: str = args.file
    return os.path.dirname(os.path.abspath(path))


def _is_given(args: argparse.Namespace) -> bool:
    """Whether anything is said of what to configure."""
    return bool(args.range or args.expose or args.kubeconfig is not None or args.policy or args.data_dir)


def _options(args: argparse.Namespace) -> Options:
    """What is to be configured. Raises InvalidEnvironment (code 4), wrong usage, for what no configuration may have."""
    ranges = {}
    for text in args.range:
        name, equals, ports = text.partition("=")
        if not equals:
            raise InvalidEnvironment(f"--range must be NAME=FIRST-LAST, got {shown(text)}")
        ranges[name] = ports
    if args.policy and args.kubeconfig is None:
        raise InvalidEnvironment("--policy is about annotating Pods: it needs --kubeconfig FILE, or --kubeconfig node")
    if args.force:
        raise InvalidEnvironment("--force is for --unwrap")
    kubeconfig = "" if args.kubeconfig == "node" else args.kubeconfig
    options = Options(ranges, args.expose, kubeconfig, args.policy, args.data_dir)
    try:
        read_settings(NetConf(alone(options)))
    except InvalidNetworkConfig as error:
        raise InvalidEnvironment(error.msg) from None
    return options


def _refuse_what_add_would(document: Mapping[str, JSON], wiring: Wiring) -> None:
    """What ADD would refuse on this node is refused now, when somebody looks."""
    conf = entry_of(document)
    if conf is None:
        raise RuntimeError("the wrapped document has no entry of ours")
    settings = read_settings(conf)
    refuse_reserved(settings.ranges, settings.reserved(wiring.sockets.ephemeral()))
    refuse_unreadable_credentials(settings.api)


def _say(as_json: bool, body: object, text: str) -> None:
    print(json.dumps(body) if as_json else text)
