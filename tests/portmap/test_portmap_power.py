"""Loss of power at any moment of portmap's commands: whatever of its unsynced files is left, the next boot's commands serve.

Its records are not synced, since the rules they tell of are gone at the next boot.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import power
import pytest
import tracing
from portmap_kit import OBSERVERS, Host, conf, tcp

from cnimeta.host.files import PosixFiles

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]

SHARES = (0.0, 0.3, 0.7, 1.0)
TRIES = 12 if os.environ.get("CNIMETA_EVERY") else 1
"""So often each share is drawn at each moment."""
NEXT = ("ADD", "DEL", "CHECK", "GC", "STATUS")


def host(boot: str) -> Host:
    made = Host()
    made.files, made.boot = PosixFiles(exclusive=True, durable=False), boot
    return made


def body(name: str, folder: str, backend: str) -> dict[str, object]:
    number = int(name[1:])
    return conf(tcp(8000 + number), ips=(f"10.88.0.{10 + number}/16",), backend=backend, dataDir=folder, snat=True)


def command(folder: str, backend: str) -> dict[str, object]:
    """What runs until power is lost: two containers come, one goes, the other is added again."""
    node = host("boot-1")
    for verb, name in (("ADD", "c0"), ("ADD", "c1"), ("DEL", "c1"), ("ADD", "c0")):
        node.call(verb, body(name, folder, backend), name)
    return {"done": True}


def recovers(verb: str, folder: str, backend: str) -> None:
    """The first command of the next boot serves; what comes after it leaves nothing."""
    node = host("boot-2")
    given = body("c0", folder, backend)
    if verb == "GC":
        given = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "portmap",
            "dataDir": folder,
            "cni.dev/valid-attachments": [],
        }
    if verb == "CHECK":
        node.call("ADD", given, "c0")
    node.call(verb, given, "c0")
    mapped = {(one.port, one.container) for one in OBSERVERS[backend](node)}
    assert mapped == ({(8000, "10.88.0.10")} if verb in ("ADD", "CHECK") else set())
    for name in ("c0", "c1"):
        node.call("DEL", body(name, folder, backend), name)
    assert OBSERVERS[backend](node) == set()
    assert [path for path in Path(folder).rglob("*.json") if path.is_file()] == []


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_next_boot_serves_when_power_is_lost_at_any_moment(tmp_path: Path, backend: str) -> None:
    folder, trace = str(tmp_path / "state"), str(tmp_path / "trace")
    given = f"trace={','.join(power.CALLS)}"
    outcome = tracing.run(lambda: command(folder, backend), given, trace, hexadecimal=True)
    assert outcome.answer == {"done": True}, outcome
    found = power.operations(trace, folder)
    assert len(found) > 10
    disk, chance, cases = power.Disk(folder), random.Random(backend), 0
    for operation in found:
        disk.apply(operation)
        for share in SHARES:
            for _ in range(TRIES):
                target = str(tmp_path / f"{cases}")
                for verb in NEXT:
                    os.makedirs(target, mode=0o700, exist_ok=True)
                    disk.after_power_loss(target, chance, share)
                    recovers(verb, target, backend)
                    shutil.rmtree(target)
                    cases += 1
    print(f"portmap {backend}: {cases} losses of power")
