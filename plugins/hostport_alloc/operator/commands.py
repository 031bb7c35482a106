"""`cnimeta ports` and `cnimeta wrap`: their arguments, what they print, and their exit status."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from cnimeta.errors import CniError, InvalidEnvironment, InvalidNetworkConfig, counted, shown
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.allocate.ranges import refuse_reserved
from cnimeta_plugins.hostport_alloc.config import LOCK_TIMEOUT_S, read_settings, refuse_unreadable_credentials
from cnimeta_plugins.hostport_alloc.operator import wrapfile
from cnimeta_plugins.hostport_alloc.operator.conf import CONF_DIR, bin_dirs, data_dir, entry_of, settings_of
from cnimeta_plugins.hostport_alloc.operator.wrap import Options, alone, wrapped

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.operator.audit import Problem
    from cnimeta_plugins.hostport_alloc.operator.repair import Repair
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

_DELIVER_LIMIT = 10_000


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], wiring: Wiring | None = None) -> None:
    """Add `ports` and `wrap`. Each parser's `run` default takes the arguments and returns the exit status."""
    _add_ports(subparsers, wiring)
    _add_wrap(subparsers)


def _add_ports(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], wiring: Wiring | None) -> None:
    ports = subparsers.add_parser("ports", help="host ports that hostport_alloc has given out")
    actions = ports.add_subparsers(dest="action", metavar="ACTION")
    for name, run, about in (
        ("list", _list, "what is allocated (the default)"),
        ("show", _show, "draw a range's occupancy"),
        ("check", _check, "compare rules, records, bits and sockets; status 1 when they disagree"),
        ("repair", _repair, "rebuild bits and rules from the records"),
        ("deliver", _deliver, "write the annotations that are pending"),
        ("release", _release, "undo what a container had, when its DEL never comes"),
    ):
        action = actions.add_parser(name, help=about, description=about)
        if name == "show":
            action.add_argument("range", metavar="RANGE", help="a range's name, or ports such as 20000-24999")
        if name == "release":
            action.add_argument("container", metavar="CONTAINER", help="the container ID, or how it begins")
            action.add_argument("--force", action="store_true", help="also when its namespace is alive")
        _add_common(action)
        action.set_defaults(run=_guarded(run, wiring))
    _add_common(ports)
    ports.set_defaults(run=_guarded(_list, wiring))


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


def _add_wrap(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "put hostport_alloc around a network configuration, or take it off again"
    parser = subparsers.add_parser("wrap", help=about, description=about)
    parser.add_argument("file", metavar="FILE", help="a .conf or .conflist file; it is replaced")
    parser.add_argument("--unwrap", action="store_true", help="put the original back")
    parser.add_argument("--force", action="store_true", help="with --unwrap: also when FILE was replaced meanwhile")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the result, change nothing")
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
    parser.set_defaults(run=_guarded(_wrap, None))


def _guarded(
    run: Callable[[argparse.Namespace, Wiring], int], wiring: Wiring | None
) -> Callable[[argparse.Namespace], int]:
    def guarded(args: argparse.Namespace) -> int:
        from cnimeta_plugins.hostport_alloc.wiring import Wiring

        try:
            return run(args, Wiring() if wiring is None else wiring)
        except CniError as error:
            print(f"cnimeta: {error}", file=sys.stderr)
            return 2 if isinstance(error, InvalidEnvironment) else 1

    return guarded


# --- wrap ------------------------------------------------------------------------------------------------------


def _wrap(args: argparse.Namespace, wiring: Wiring) -> int:
    if args.unwrap and args.only_print:
        sys.stdout.write(wrapfile.unwrapped(args.file, force=args.force).decode("utf-8", "replace"))
        return 0
    if args.unwrap:
        original = wrapfile.unwrap_file(args.file, force=args.force)
        _say(args.json, {"action": "unwrap", "file": args.file}, f"{args.file} is as it was; {original} is gone")
        return 0
    options = _options(args)
    document = wrapped(wrapfile.read_document(args.file), options)
    _refuse_what_add_would(document, wiring)
    if args.only_print:
        sys.stdout.write(wrapfile.render(document))
        return 0
    original = wrapfile.wrap_file(args.file, options)
    body = {"action": "wrap", "file": args.file, "original": original}
    _say(args.json, body, f"{args.file} is wrapped; the original is {original}")
    return 0


def _options(args: argparse.Namespace) -> Options:
    """What is to be configured. Raises InvalidEnvironment (code 4), wrong usage, for what no configuration may have."""
    ranges = {}
    for text in args.range:
        name, equals, ports = text.partition("=")
        if not equals:
            raise InvalidEnvironment(f"--range must be NAME=FIRST-LAST, got {shown(text)}")
        ranges[name] = ports
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


# --- ports -----------------------------------------------------------------------------------------------------


def _opened(args: argparse.Namespace, wiring: Wiring) -> tuple[Settings | None, Store]:
    settings = settings_of(args)
    timeout_s = settings.lock_timeout_s if settings is not None else LOCK_TIMEOUT_S
    return settings, wiring.store(data_dir(args, settings), timeout_s, _log)


def _log(line: str) -> None:
    print(line, file=sys.stderr)


def _json(args: argparse.Namespace) -> bool:
    return bool(getattr(args, "json", False))


def _list(args: argparse.Namespace, wiring: Wiring) -> int:
    from cnimeta_plugins.hostport_alloc.operator.listing import entries_of, listing
    from cnimeta_plugins.hostport_alloc.operator.table import width

    _, store = _opened(args, wiring)
    found = entries_of(store)
    if _json(args):
        print(json.dumps(found, indent=2))
    else:
        sys.stdout.write(listing(found, width()))
    return 0


def _show(args: argparse.Namespace, wiring: Wiring) -> int:
    from cnimeta_plugins.hostport_alloc.operator.listing import RangeView, range_named

    settings, store = _opened(args, wiring)
    view = RangeView.of(range_named(args.range, settings), store.occupancy(), wiring.blocked(_log))
    if _json(args):
        print(json.dumps(view.body))
    else:
        sys.stdout.write(view.text)
    return 0


def _check(args: argparse.Namespace, wiring: Wiring) -> int:
    from cnimeta_plugins.hostport_alloc.operator.audit import Audit

    settings, store = _opened(args, wiring)
    problems = list(Audit(wiring, store, data_dir(args, settings), bin_dirs(args), _log).problems())
    if _json(args):
        print(json.dumps({"ok": not problems, "problems": [problem.body for problem in problems]}, indent=2))
    else:
        _print_problems(problems)
        print("rules, records, bits and sockets agree" if not problems else counted(len(problems), "problem"))
    return 1 if problems else 0


def _repairing(args: argparse.Namespace, wiring: Wiring) -> Repair:
    from cnimeta_plugins.hostport_alloc.operator.repair import Repair

    settings, store = _opened(args, wiring)
    timeout_s = settings.lock_timeout_s if settings is not None else LOCK_TIMEOUT_S
    folder = data_dir(args, settings)
    return Repair(wiring, store, wiring.locks(folder, timeout_s), folder, bin_dirs(args), _log)


def _repair(args: argparse.Namespace, wiring: Wiring) -> int:
    repair = _repairing(args, wiring)
    repaired, failed = repair.run()
    if _json(args):
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
    if _json(args):
        problems = [problem.body for problem in failed]
        print(json.dumps({"ok": not failed, "freed": freed, "problems": problems}, indent=2))
    else:
        _print_problems(failed)
        print(f"freed {', '.join(freed) or 'nothing'}")
    return 1 if failed else 0


def _print_problems(problems: Sequence[Problem]) -> None:
    from cnimeta_plugins.hostport_alloc.operator.table import SHORT_ID, table

    rows = [[problem.kind, problem.container_id[:SHORT_ID], problem.message] for problem in problems]
    if rows:
        sys.stdout.write(table(("KIND", "CONTAINER", "PROBLEM"), rows))


def _deliver(args: argparse.Namespace, wiring: Wiring) -> int:
    from cnimeta_plugins.hostport_alloc.pod.annotation import Deadline, deliver_pending

    settings, store = _opened(args, wiring)
    if settings is None or settings.api is None:
        raise InvalidNetworkConfig('no configuration with "kubernetes" was found: use --conf')
    api = wiring.pods(settings.api.kubeconfig)
    done = deliver_pending(store, api, Deadline(wiring.clock, 60), _DELIVER_LIMIT, _log)
    left = len(store.pending(_DELIVER_LIMIT))
    text = f"{counted(done.written, 'annotation')} written, {done.dropped} of Pods that are gone, {left} still pending"
    _say(_json(args), {**done._asdict(), "pending": left}, text)
    return 1 if left else 0
