"""`cnimeta ports` and `cnimeta wrap`: what operators see of hostport_alloc."""

from __future__ import annotations

import json
import os
import sys

from cnimeta.errors import CniError, InvalidNetworkConfig, shown
from cnimeta.spec.fields import Fields
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.config import DATA_DIR, PLUGIN_TYPE, Settings, read_settings
from cnimeta_plugins.hostport_alloc.operator import wrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.allocate.allocator import PortRange
    from cnimeta_plugins.hostport_alloc.operator.audit import Audit
    from cnimeta_plugins.hostport_alloc.state.record import Record
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.wiring import Host

CONF_DIR = "/etc/cni/net.d"
_DELIVER_LIMIT = 10_000
_SHORT_ID = 12


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], host: Host | None = None) -> None:
    """Add `ports` and `wrap`. Each parser's `run` default takes the arguments and returns the exit status."""
    _add_ports(subparsers, host)
    _add_wrap(subparsers)


def _add_ports(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], host: Host | None) -> None:
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
            action.add_argument("container", metavar="CONTAINER", help="the whole container ID, as --json prints it")
        _add_common(action)
        action.set_defaults(run=_guarded(run, host))
    _add_common(ports)
    ports.set_defaults(run=_guarded(_list, host))


def _add_common(parser: argparse.ArgumentParser) -> None:
    import argparse

    quiet = argparse.SUPPRESS  # given before or after the action, a value is not reset by the other parser
    parser.add_argument("--json", action="store_true", default=quiet, help="print JSON")
    parser.add_argument("--data-dir", metavar="DIR", default=quiet, help="dataDir; default: the configuration's")
    parser.add_argument(
        "--conf", metavar="FILE", default=quiet, help=f"the network configuration; default: in {CONF_DIR}"
    )
    parser.add_argument("--bin-dir", metavar="DIR", default=quiet, help="where the plugins are; default: as at ADD")


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


def _guarded(run: Callable[[argparse.Namespace, Host], int], host: Host | None) -> Callable[[argparse.Namespace], int]:
    def guarded(args: argparse.Namespace) -> int:
        from cnimeta_plugins.hostport_alloc.wiring import Host

        try:
            return run(args, Host() if host is None else host)
        except CniError as error:
            print(f"cnimeta: {error}", file=sys.stderr)
            return 1

    return guarded


# --- wrap ------------------------------------------------------------------------------------------------------


def _wrap(args: argparse.Namespace, _: Host) -> int:
    if args.unwrap:
        original = wrap.unwrap_file(args.file, force=args.force)
        _say(args.json, {"action": "unwrap", "file": args.file}, f"{args.file} is as it was; {original} is gone")
        return 0
    ranges = {}
    for text in args.range:
        name, equals, ports = text.partition("=")
        if not equals:
            raise InvalidNetworkConfig(f"--range must be NAME=FIRST-LAST, got {shown(text)}")
        ranges[name] = ports
    kubeconfig = "" if args.kubeconfig == "node" else args.kubeconfig
    options = wrap.Options(ranges, args.expose, kubeconfig, args.policy, args.data_dir)
    if args.only_print:
        sys.stdout.write(wrap.render(wrap.wrapped(wrap.read_document(args.file), options)))
        return 0
    original = wrap.wrap_file(args.file, options)
    body = {"action": "wrap", "file": args.file, "original": original}
    _say(args.json, body, f"{args.file} is wrapped; the original is {original}")
    return 0


def _say(as_json: bool, body: object, text: str) -> None:
    print(json.dumps(body) if as_json else text)


# --- ports -----------------------------------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> Settings | None:
    """The first hostport_alloc configuration in --conf, or in the runtime's folder; None when there is none."""
    given = getattr(args, "conf", None)
    found = _entry(wrap.read_document(given)) if given else None
    if given and found is None:
        raise InvalidNetworkConfig(f"{shown(given)} has no plugin of type {PLUGIN_TYPE}")
    for name in () if given else _names(CONF_DIR):
        try:
            found = _entry(wrap.read_document(os.path.join(CONF_DIR, name)))
        except CniError:
            continue  # not ours to judge
        if found is not None:
            break
    return read_settings(found) if found is not None else None


def _names(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(name for name in names if name.endswith((".conf", ".conflist", ".json")))


def _entry(document: dict[str, JSON]) -> NetConf | None:
    fields = Fields(document)
    head: dict[str, JSON] = {"name": fields.text("name"), "cniVersion": fields.text("cniVersion")}
    for entry in fields.objects("plugins") if fields.has("plugins") else [fields]:
        if entry.text("type") == PLUGIN_TYPE:
            return NetConf({**entry.raw, **head})
    return None


def _store(args: argparse.Namespace, host: Host, settings: Settings | None) -> Store:
    return host.store(_data_dir(args, settings), settings.lock_timeout_s if settings is not None else 10, _log)


def _data_dir(args: argparse.Namespace, settings: Settings | None) -> str:
    folder = getattr(args, "data_dir", None) or (settings.data_dir if settings is not None else DATA_DIR)
    return os.path.abspath(folder)


def _log(line: str) -> None:
    print(line, file=sys.stderr)


def _json(args: argparse.Namespace) -> bool:
    return bool(getattr(args, "json", False))


def _list(args: argparse.Namespace, host: Host) -> int:
    from cnimeta_plugins.hostport_alloc.operator.table import age, table

    store = _store(args, host, _settings(args))
    now = host.clock.now()
    found = [entry for record in store.records() for entry in _entries(record, store, now)]
    found.sort(key=lambda entry: (entry["hostPort"], entry["protocol"]))
    if _json(args):
        print(json.dumps(found, indent=2))
        return 0
    heads = ("HOST PORT", "PROTOCOL", "RANGE", "PORT", "POD", "CONTAINER", "NETWORK", "AGE", "STATE", "ANNOTATION")
    keys = ("hostPort", "protocol", "range", "containerPort", "pod")
    rows = [
        [
            *(str(entry[key]) for key in keys),
            str(entry["containerID"])[:_SHORT_ID],
            str(entry["network"]),
            age(float(str(entry["ageSeconds"]))),
            str(entry["state"]),
            str(entry["annotation"]),
        ]
        for entry in found
    ]
    sys.stdout.write(table(heads, rows))
    return 0


def _entries(record: Record, store: Store, now: float) -> list[dict[str, object]]:
    """One object per host port of a record."""
    common = {
        "pod": f"{record.pod.namespace}/{record.pod.name}" if record.pod is not None else "",
        "podUID": record.pod.uid if record.pod is not None else "",
        "containerID": record.container_id,
        "ifname": record.ifname,
        "network": record.network,
        "ageSeconds": round(now - record.created) if record.created else 0,
        "state": record.phase if store.is_alive(record) else "earlier boot",
        "annotation": record.annotation.state,
        "annotationError": record.annotation.error,
    }
    ports = [(port.host_port, port.protocol, port.range, port.container_port, port.host_ip) for port in record.ports]
    ports += [
        (port.host_port, port.protocol, "explicit", port.container_port, port.host_ip) for port in record.explicit
    ]
    keys = ("hostPort", "protocol", "range", "containerPort", "hostIP")
    return [{**dict(zip(keys, port, strict=True)), **common} for port in ports]


def _show(args: argparse.Namespace, host: Host) -> int:
    from cnimeta_plugins.hostport_alloc.allocate.allocator import ports_of
    from cnimeta_plugins.hostport_alloc.operator.table import drawing

    settings = _settings(args)
    found = _range(args.range, settings)
    inspection = _store(args, host, settings).inspect()
    blocked_by = host.blocked(_log)
    used = blocked = 0
    for protocol in ("tcp", "udp", "sctp"):
        used |= inspection.used.get(protocol, 0)
        blocked |= blocked_by.get(protocol, 0)
    now = host.clock.boottime()
    quarantined = ports_of((held.port, held.port) for held in inspection.quarantined if held.until > now)
    counts = {
        "size": found.size,
        "used": (used & found.ports).bit_count(),
        "quarantined": (quarantined & found.ports & ~used).bit_count(),
        "blocked": (blocked & found.ports & ~used).bit_count(),
    }
    if _json(args):
        members = [port for first, last in found.spans for port in range(first, last + 1) if used >> port & 1]
        print(json.dumps({"range": found.name, "ports": found.text, **counts, "usedPorts": members}))
        return 0
    print(f"{found.name}: {found.text}, " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    sys.stdout.write(drawing(found, used, blocked, quarantined))
    return 0


def _range(name: str, settings: Settings | None) -> PortRange:
    from cnimeta_plugins.hostport_alloc.allocate.allocator import parse_range

    if name[:1].isdigit():
        return parse_range(name, name, "RANGE")
    known = settings.ranges if settings is not None else ()
    for found in known:
        if found.name == name:
            return found
    where = ", ".join(found.name for found in known) or "no configuration was found, use --conf"
    raise InvalidNetworkConfig(f"there is no range {shown(name)}: {where}")


def _audit(args: argparse.Namespace, host: Host) -> Audit:
    from cnimeta_plugins.hostport_alloc.operator.audit import Audit

    folder = getattr(args, "bin_dir", None)
    settings = _settings(args)
    store, data_dir = _store(args, host, settings), _data_dir(args, settings)
    return Audit(host, store, data_dir, (os.path.abspath(folder),) if folder else (), _log)


def _check(args: argparse.Namespace, host: Host) -> int:
    problems = list(_audit(args, host).problems())
    if _json(args):
        print(json.dumps({"ok": not problems, "problems": [problem._asdict() for problem in problems]}, indent=2))
    else:
        _print_problems(problems)
        print("rules, records, bits and sockets agree" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


def _repair(args: argparse.Namespace, host: Host) -> int:
    audit = _audit(args, host)
    repaired, failed = audit.repair()
    others, more = audit.repair_others(repaired)
    repaired, failed = repaired + others, failed + more
    if _json(args):
        body = {"ok": not failed, "containers": repaired, "problems": [problem._asdict() for problem in failed]}
        print(json.dumps(body, indent=2))
    else:
        _print_problems(failed)
        print(f"port mappings of {len(repaired)} containers are in place, {len(failed)} could not be repaired")
    return 1 if failed else 0


def _release(args: argparse.Namespace, host: Host) -> int:
    freed, failed = _audit(args, host).release(args.container)
    if not freed and not failed:
        raise InvalidNetworkConfig(
            f"no record of container {shown(args.container)}: `cnimeta ports --json` has the IDs"
        )
    if _json(args):
        problems = [problem._asdict() for problem in failed]
        print(json.dumps({"ok": not failed, "freed": freed, "problems": problems}, indent=2))
    else:
        _print_problems(failed)
        print(f"freed {', '.join(freed) or 'nothing'}")
    return 1 if failed else 0


def _print_problems(problems: Sequence[object]) -> None:
    from cnimeta_plugins.hostport_alloc.operator.table import table

    rows = [[str(value) for value in problem] for problem in problems]  # type: ignore[attr-defined]
    if rows:
        sys.stdout.write(table(("KIND", "CONTAINER", "PROBLEM"), [[k, c[:_SHORT_ID], m] for k, c, m in rows]))


def _deliver(args: argparse.Namespace, host: Host) -> int:
    from cnimeta_plugins.hostport_alloc.pod.annotation import Deadline, deliver_pending

    settings = _settings(args)
    if settings is None or settings.api is None:
        raise InvalidNetworkConfig('no configuration with "kubernetes" was found: use --conf')
    store = _store(args, host, settings)
    api = host.pods(settings.api.kubeconfig)
    done = deliver_pending(store, api, Deadline(host.clock, 60), _DELIVER_LIMIT, _log)
    left = len(store.pending(_DELIVER_LIMIT))
    text = f"{done.written} annotations written, {done.dropped} of Pods that are gone, {left} still pending"
    _say(_json(args), {**done._asdict(), "pending": left}, text)
    return 1 if left else 0
