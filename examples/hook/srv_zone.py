#!/usr/bin/python3 -I
"""Keeps a DNS zone of SRV records in step with the host ports of a node: a program for `notify` of hostport_alloc.

    "notify": {"program": "/usr/local/lib/cnimeta/srv_zone.py"}

It gets one event on stdin and has taken it when it ends with status 0. An event may come twice; those of an attachment
come in order, and never two at a time. Beside it is `srv_zone.json`: {"zone": "ports.example.", "folder": DIR}.
In the folder it keeps what it was told, and the zone, which any DNS server loads: `_80._tcp.web.default` leads to the
host ports of port 80 of Pod web in namespace default.
"""

import ipaddress
import json
import os
import re
import sys

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
NAME_MAX = 253
"""Of a whole name, zone included (RFC 1035): no server loads a zone with a longer one, and Pods may have such names."""


def main() -> int:
    with open(os.path.join(os.path.dirname(os.path.realpath(__file__)), "srv_zone.json"), encoding="utf-8") as file:
        settings = json.load(file)
    event = json.load(sys.stdin)
    if event["version"] != 1:
        print(f"version {event['version']} of the event is not known", file=sys.stderr)
        return 1
    path = os.path.join(settings["folder"], "attachments.json")
    attachments = read(path)
    key = "/".join(event["attachment"][name] for name in ("network", "containerID", "ifname"))
    if event["event"] == "added":
        attachments[key] = {name: event[name] for name in ("reservation", "pod", "mappings")}
    elif attachments.get(key, {}).get("reservation") == event["reservation"]:
        del attachments[key]
    # The zone first: who is killed in between is told again, and makes it once more.
    replace(os.path.join(settings["folder"], "zone"), zone(settings["zone"], attachments, serial=event["id"]))
    replace(path, json.dumps(attachments))
    return 0


def read(path: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def zone(origin: str, attachments: dict, serial: int) -> str:
    """The zone: an SRV record for each mapping of a Pod, and an address record for each name they lead to."""
    services, names = [], {}
    for attachment in attachments.values():
        pod = attachment["pod"]
        labels = f"{pod['name']}.{pod['namespace']}".split(".") if pod else []
        if not labels or not all(LABEL.fullmatch(label) for label in labels):
            continue
        for mapping in attachment["mappings"]:
            address = mapping.get("externalIP", mapping["hostIP"])
            if not address:
                continue
            port = mapping.get("externalPort", mapping["hostPort"])
            name = "ip-" + ipaddress.ip_address(address).exploded.replace(".", "-").replace(":", "-")
            service = f"_{mapping['containerPort']}._{mapping['protocol'].lower()}.{'.'.join(labels)}"
            if len(f"{service}.{origin.rstrip('.')}") > NAME_MAX:
                continue
            names[name] = ("AAAA" if ":" in address else "A", address)
            services.append(f"{service} SRV 0 0 {port} {name}")
    lines = [f"$ORIGIN {origin}", "$TTL 5", f"@ SOA ns hostmaster {serial} 60 10 86400 5", "@ NS ns", "ns A 127.0.0.1"]
    lines += sorted(set(services)) + [f"{name} {kind} {address}" for name, (kind, address) in sorted(names.items())]
    return "\n".join(lines) + "\n"


def replace(path: str, text: str) -> None:
    """Replace a file, whole and durably."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"srv_zone: {error!r}", file=sys.stderr)
        sys.exit(1)
