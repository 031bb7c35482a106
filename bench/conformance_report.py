"""Write docs/conformance.md: the conformance suite's report on this project's plugins and on installed others.

sudo python bench/conformance_report.py [--others /usr/lib/cni] [--write docs/conformance.md]
"""

from __future__ import annotations

import argparse
import os
import tempfile

from cnimeta.cli.install import install
from cnimeta.testing.conformance import RULES, Finding, examine
from cnimeta.testing.conformance.subject import sandbox

CONFS = {
    "portmap": {
        "type": "portmap",
        "capabilities": {"portMappings": True},
        "snat": True,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    },
    "bandwidth": {
        "type": "bandwidth",
        "capabilities": {"bandwidth": True},
        "runtimeConfig": {
            "bandwidth": {"ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 8000000, "egressBurst": 800000}
        },
    },
    "hostport_alloc": {
        "type": "hostport_alloc",
        "expose": ["80/tcp"],
        "hostIP": "192.0.2.10",
        "portmap": {"type": "portmap", "snat": True},
    },
}
HEAD = """# Conformance

`cnimeta conformance PATH --conf FILE` tests a CNI plugin executable, written in any language, against the CNI
specification 1.1.0. It needs root, iproute2 and util-linux: the plugin runs in throw-away namespaces of networks and
mounts, so that the node's state stays untouched, and CHECK is the observer of what ADD, DEL and GC really did. Each
rule cites its sentence of the specification (`--format json` prints them all). How to use it: [testing.md](testing.md).

Below: this project's plugins beside the Go reference plugins 1.1.1 as Debian 12 packages them. Written by
`python bench/conformance_report.py --write docs/conformance.md`; `tests/sdk/test_conformance.py` runs it again.
Reference 1.1.1 supports spec versions up to 1.0.0, so the rules for GC and STATUS do not apply to it. Some rules are
stricter than the reference's own reading of the spec (it asks for CNI_PATH everywhere, and ignores the version that
VERSION is asked in); the table says what happens, not who is to blame.
"""


def report(folder: str, name: str, state: str) -> list[Finding]:
    """The findings on the plugin `name` in `folder`; its records go under `state`."""
    conf = {**CONFS[name], "dataDir": state}
    if name == "hostport_alloc":
        conf["portmap"] = {**conf["portmap"], "dataDir": state}
    with sandbox(os.path.join(folder, name), conf) as subject:
        return examine(subject)


def rendered(reports: dict[str, list[Finding]]) -> str:
    """The page."""
    lines = [HEAD, "| rule | " + " | ".join(reports) + " |", "|---" * (len(reports) + 1) + "|"]
    for index, rule in enumerate(RULES):
        cells = [findings[index].outcome for findings in reports.values()]
        lines.append(f"| {rule.words} ({rule.clause}) | " + " | ".join(cells) + " |")
    for title, findings in reports.items():
        failed = [finding for finding in findings if finding.outcome == "FAIL"]
        if failed:
            lines.append(f"\n## What {title} does\n")
            lines += [f"- *{finding.rule}*: `{stable(finding.detail.partition(chr(10))[0])}`" for finding in failed]
    return "\n".join(lines) + "\n"


def stable(detail: str) -> str:
    """A detail without what differs from run to run."""
    words = [word for word in detail.replace("`", "'").split(" ") if word]
    return " ".join("cnimeta-pod" if "cnimeta-pod-" in word else word for word in words)


def all_reports(others: str) -> dict[str, list[Finding]]:
    """Ours, then the others that are installed."""
    with tempfile.TemporaryDirectory() as folder:
        install(folder, list(CONFS))
        found = {name: report(folder, name, os.path.join(folder, f"state-{name}")) for name in CONFS}
        for name in ("portmap", "bandwidth"):
            found[f"reference {name}"] = report(others, name, os.path.join(folder, "unused"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--others", default="/usr/lib/cni")
    parser.add_argument("--write", default="", metavar="FILE")
    args = parser.parse_args()
    page = rendered(all_reports(args.others))
    if args.write:
        with open(args.write, "w", encoding="utf-8") as file:
            file.write(page)
    else:
        print(page)


if __name__ == "__main__":
    main()
