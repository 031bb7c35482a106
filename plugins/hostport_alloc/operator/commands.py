"""`cnimeta ports` and `cnimeta wrap`: their arguments, what they print, and their exit status."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from cnimeta.errors import CniError, InvalidEnvironment, InvalidNetworkConfig, counted, shown
from cnimeta.observe import notes
from cnimeta.plugin.report import leave_event
from cnimeta_plugins.hostport_alloc.config import LOCK_TIMEOUT_S
from cnimeta_plugins.hostport_alloc.operator import looking, reserving
from cnimeta_plugins.hostport_alloc.operator.conf import CONF_DIR, OWN_NAME, bin_dirs, data_dir, log, opened, wants_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from cnimeta_plugins.hostport_alloc.operator.audit import Problem
    from cnimeta_plugins.hostport_alloc.operator.repair import Repair
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], wiring: Wiring | None = None) -> None:
    """Add `ports` and `wrap`. Each parser's `run` default takes the arguments and returns the exit status."""
    _add_ports(subparsers, wiring)
    _add_wrap(subparsers, wiring)


def _add_ports(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], wiring: Wiring | None) -> None:
    ports = subparsers.add_parser("ports", help="host ports that hostport_alloc has given out")
    actions = ports.add_subparsers(dest="action", metavar="ACTION")
    for name, run, about in (
        ("list", looking.list_ports, "what is allocated (the default)"),
        ("top", looking.top, "how full the ranges are, live"),
        ("show", looking.show_range, "draw a range's occupancy, and say it in words"),
        ("check", _check, "compare rules, records, bits and sockets; status 1 when they disagree"),
        ("repair", _repair, "rebuild bits and rules from the records"),
        ("deliver", _deliver, "write the annotations that are pending, tell the hook of what waits"),
        ("reserve", reserving.reserve, "keep the ranges in net.ipv4.ip_local_reserved_ports, as ADD does"),
        ("release", _release, "undo what a container had, when its DEL never comes"),
    ):
        action = actions.add_parser(name, help=about, description=about)
        if name == "list":
            looking.add_list_options(action)
        if name == "top":
            looking.add_top_options(action)
        if name == "check":
            action.add_argument("--deep", action="store_true", help="also ask the delegates that map no ports")
        if name == "deliver":
            action.add_argument("--again", action="store_true", help="tell the hook of every mapping anew")
        if name == "reserve":
            reserving.add_reserve_options(action)
        if name == "show":
            action.add_argument("range", metavar="RANGE", help="a range's name, or ports such as 20000-24999")
        if name == "release":
            action.add_argument("container", metavar="CONTAINER", help="the container ID, or how it begins")
            action.add_argument("--force", action="store_true", help="also when its namespace is alive")
        _add_common(action)
        action.set_defaults(run=_guarded(run, wiring))
    _add_common(ports)
    looking.add_list_options(ports)
    ports.set_defaults(run=_guarded(looking.list_ports, wiring))


def _add_wrap(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], wiring: Wiring | None) -> None:
    about = "put hostport_alloc around a network configuration, or take it off again"
    parser = subparsers.add_parser("wrap", help=about, description=about)
    parser.add_argument("file", metavar="FILE", help="a .conf or .conflist file; it is replaced, unless --own is given")
    parser.add_argument("--unwrap", action="store_true", help="put the original back, with what was edited since")
    parser.add_argument(
        "--own", action="store_true", help=f"leave FILE alone: write {OWN_NAME} beside it, which is first"
    )
    parser.add_argument("--force", action="store_true", help="with --unwrap: the original, whatever FILE is now")
    shown_only = parser.add_mutually_exclusive_group()
    shown_only.add_argument("--print", action="store_true", dest="only_print", help="print the result, change nothing")
    shown_only.add_argument("--diff", action="store_true", help="print what would differ, change nothing")
    shown_only.add_argument("--keep", action="store_true", help=f"go on keeping {OWN_NAME} in step with FILE")
    parser.add_argument("--range", action="append", default=[], metavar="NAME=FIRST-LAST", help="a range of host ports")
    parser.add_argument(
        "--expose", action="append", default=[], metavar="[RANGE:]PORT/PROTO", help="for every container"
    )
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="annotate Pods with these credentials; `node`: the kubelet's"
    )
    parser.add_argument("--policy", choices=("deferred", "required"), default="", help="when a Pod cannot be annotated")
    parser.add_argument("--data-dir", metavar="DIR", default="", help="where records are kept")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_guarded(_wrap, wiring))


def _wrap(args: argparse.Namespace, wiring: Wiring) -> int:
    from cnimeta_plugins.hostport_alloc.operator.wrapping import wrap

    return wrap(args, wiring)


def _add_common(parser: argparse.ArgumentParser) -> None:
    import argparse

    quiet = argparse.SUPPRESS  # given before or after the action, a value is not reset by the other parser
    parser.add_argument("--json", action="store_true", default=quiet, help="print JSON")
    parser.add_argument("--data-dir", metavar="DIR", default=quiet, help="dataDir; default: the configuration's")
    parser.add_argument(
        "--conf", metavar="FILE", default=quiet, help=f"the network configuration; default: in {CONF_DIR}"
    )
    parser.add_argument(
        "--bin-dir",
        action="append",
        metavar="DIR[:DIR]",
        default=quiet,
        help="where plugins are; repeatable; default: as at ADD",
    )


def _guarded(
    run: Callable[[argparse.Namespace, Wiring], int], wiring: Wiring | None
) -> Callable[[argparse.Namespace], int]:
    def guarded(args: argparse.Namespace) -> int:
        from cnimeta_plugins.hostport_alloc.wiring import Wiring

        try:
            if getattr(args, "action", None) not in (None, "list"):
                looking.refuse_listing_options(args)
            notes.begin()
            try:
                return run(args, Wiring() if wiring is None else wiring)
            finally:
                leave_event(f"ports {getattr(args, 'action', None) or 'list'}", os.environ)
        except CniError as error:
            print(f"cnimeta: {error}", file=sys.stderr)
            return 2 if isinstance(error, InvalidEnvironment) else 1

    return guarded


def _check(args: argparse.Namespace, wiring: Wiring) -> int:
    from cnimeta_plugins.hostport_alloc.operator.audit import Audit

    settings, store = opened(args, wiring)
    problems = list(Audit(wiring, store, data_dir(args, settings), bin_dirs(args), log).problems(deep=args.deep))
    if wants_json(args):
        print(json.dumps({"ok": not problems, "problems": [problem.body for problem in problems]}, indent=2))
    else:
        _print_problems(problems)
        print("rules, records, bits and sockets agree" if not problems else counted(len(problems), "problem"))
    return 1 if problems else 0


def _repairing(args: argparse.Namespace, wiring: Wiring) -> Repair:
    from cnimeta_plugins.hostport_alloc.operator.repair import Repair

    settings, store = opened(args, wiring)
    timeout_s = settings.lock_timeout_s if settings is not None else LOCK_TIMEOUT_S
    folder = data_dir(args, settings)
    return Repair(wiring, store, wiring.locks(folder, timeout_s), folder, bin_dirs(args), log)


def _repair(args: argparse.Namespace, wiring: Wiring) -> int:
    from cnimeta.terminal.progress import Progress

    with Progress("repairing") as progress:
        repaired, failed = _repairing(args, wiring).run(progress)
    if wants_json(args):
        body = {"ok": not failed, "containerIDs": repaired, "problems": [problem.body for problem in failed]}
        print(json.dumps(body, indent=2))
    else:
        _print_problems(failed)
        print(
            f"port mappings of {counted(len(repaired), 'container')} are in place, {len(failed)} could not be repaired"
        )
    return 1 if failed else 0


def _release(args: argparse.Namespace, wiring: Wiring) -> int:
    freed, failed = _repairing(args, wiring).release(args.container, force=args.force)
    if not freed and not failed:
        raise InvalidNetworkConfig(
            f"no record of container {shown(args.container)}: `cnimeta ports` lists the containers"
        )
    if wants_json(args):
        problems = [problem.body for problem in failed]
        print(json.dumps({"ok": not failed, "freed": freed, "problems": problems}, indent=2))
    else:
        _print_problems(failed)
        print(f"freed {', '.join(freed) or 'nothing'}")
    return 1 if failed else 0


def _print_problems(problems: Sequence[Problem]) -> None:
    from cnimeta.terminal.table import table
    from cnimeta_plugins.hostport_alloc.operator.formats import SHORT_ID

    rows = [[problem.kind, problem.container_id[:SHORT_ID], problem.message] for problem in problems]
    if rows:
        sys.stdout.write(table(("KIND", "CONTAINER", "PROBLEM"), rows))


def _deliver(args: argparse.Namespace, wiring: Wiring) -> int:
    from cnimeta_plugins.hostport_alloc.operator.delivering import deliver

    return deliver(args, wiring)
