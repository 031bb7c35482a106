"""The node of a soak: commands in forks of their own, eight at a time, and what happens to the node between them."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from look import look, run
from sandbox import bind, fresh_network, unmount
from soak_model import Attachment, Model, Seen
from stage import BIN, DATA, Stage, command, forked, reap, strays
from steps import EXPOSED, Step

from cnimeta.plugin.registry import installed
from cnimeta.testing.kube import PodServer

if TYPE_CHECKING:
    from collections.abc import Callable

BOOT = "/proc/sys/kernel/random/boot_id"
VALID = "cni.dev/valid-attachments"
RANGES = {"pods": "20000-20999", "old-pods": "22000-22999", "noted": "23000-23999"}
LONGEST_S = 60.0


class Finding(Exception):
    """The node is not as the model has it."""


class Soak:
    """One run. Made inside `sandbox.inside`."""

    def __init__(self) -> None:
        self.stage = Stage(installed(), shaped=False)
        self.model = Model()
        self.exposed: dict[str, tuple[str, ...]] = dict.fromkeys(RANGES, EXPOSED[1])
        self.names = {name: name for name in (*RANGES, "plain")}
        self.renames = self.boots = 0
        self.flushed: set[str] = set()
        self.served = 0
        self.codes: dict[str, int] = {}
        importlib.import_module("kubernetes.client")
        self.pods = PodServer("/run")
        self.kubeconfig = self.pods.kubeconfig("/run/kubeconfig", token=self.pods.token("cnimeta"))
        self.boot()
        self.known = {int(name) for name in os.listdir("/proc") if name.isdigit()}

    def boot(self) -> None:
        if self.boots:
            unmount(BOOT)
        self.boots += 1
        Path("/run/boot").write_text(f"00000000-0000-4000-8000-{self.boots:012}\n", encoding="ascii")
        bind("/run/boot", BOOT)

    # --- commands --------------------------------------------------------------------------------------------

    def conf(self, verb: str, network: str, name: str, address: str) -> dict[str, Any]:
        plugin = "portmap" if network == "plain" else "hostport_alloc"
        found: dict[str, Any] = {"cniVersion": "1.1.0", "name": self.names[network], "type": plugin, "dataDir": DATA}
        if plugin == "portmap":
            port = 30000 + int(name[1:])
            found["runtimeConfig"] = {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}
        else:
            backend = "iptables" if network == "old-pods" else "nftables"
            found |= {"ranges": {"default": RANGES[network]}, "expose": list(self.exposed[network])}
            found |= {"quarantineSeconds": 0, "portmap": {"type": "portmap", "backend": backend}}
        if network == "noted":
            found["kubernetes"] = {"kubeconfig": self.kubeconfig, "policy": "deferred", "timeout": 1}
        if verb in ("ADD", "CHECK", "DEL"):
            inside = {"name": "eth0", "sandbox": f"/run/netns/{name}"}
            ips = [{"address": f"{address}/16", "interface": 0}]
            found["prevResult"] = {"cniVersion": "1.1.0", "interfaces": [inside], "ips": ips}
        return found

    def work(self, verb: str, network: str, name: str = "c0", **keys: Any) -> Callable[[], dict[str, Any]]:
        conf = self.conf(verb, network, name, address_of(name)) | keys
        return command(lambda: self.stage.plugin(conf["type"]), verb, name, conf)

    def start(self, step: Step) -> Running | None:
        """The command of a step, begun; None for one that makes no sense now."""
        name = f"c{step.container}"
        there = self.model.attachments.get(name)
        kind = step.kind.removeprefix("killed ")
        verb = "ADD" if kind == "AGAIN" else kind
        if kind == "STATUS":
            return Running(self.work("STATUS", step.network), verb, step, None)
        if kind == "die":
            return None
        if kind == "ADD":
            if there is not None and (not there.old or self.names[there.network] != self.name_of(there)):
                return None  # a container is not added again under another network's name before its DEL
            network = there.network if there is not None else step.network
            there = Attachment(name, network, address_of(name), self.wanted(network, name))
            self.make_namespace(name)
        elif there is None or (kind != "DEL" and (there.old or self.names[there.network] != self.name_of(there))):
            if kind != "DEL":
                return None
            there = Attachment(name, step.network, address_of(name), frozenset())
        return Running(self.work(verb, there.network, name), verb, step, there)

    def name_of(self, one: Attachment) -> str:
        return getattr(one, "named", self.names[one.network])

    def is_excused(self, one: Attachment) -> bool:
        """See `Model.excused`."""
        return one.network == "plain" or self.name_of(one) != self.names[one.network]

    def wanted(self, network: str, name: str) -> frozenset[tuple[str, int]]:
        if network == "plain":
            return frozenset({("tcp", 80)})
        return frozenset((text.partition("/")[2], int(text.partition("/")[0])) for text in self.exposed[network])

    def make_namespace(self, name: str) -> None:
        path = Path("/run/netns", name)
        if not path.exists():
            path.touch()
            with fresh_network():
                bind("/proc/thread-self/ns/net", str(path))
        if ("default", name) not in self.pods.pods.objects:
            self.pods.pods.create("default", name, uid=f"uid-{name}", annotations={})

    # --- steps -----------------------------------------------------------------------------------------------

    def take(self, batch: list[Step]) -> None:
        """Run a batch, and tell the model."""
        special = getattr(self, f"_{batch[0].kind}", None)
        if special is not None:
            special(batch[0])
            self.served += 1
            return
        begun = [one for one in (self.start(step) for step in batch) if one is not None]
        for step in batch:
            if step.kind == "die" and (one := self.model.attachments.get(f"c{step.container}")) and one.sure:
                self.flushed.add(one.name)  # the runtime has lost it: GC's business
        for running in begun:
            self.note(running, running.ended())
            self.served += 1
        reap()

    def note(self, running: Running, answer: dict[str, Any] | None) -> None:
        """What a command means for the model. Raises Finding for an answer that it should not have given."""
        verb, one = running.verb, running.attachment
        code = 0 if answer is None else code_of(answer)
        self.codes[f"{verb} {'killed' if answer is None else code}"] = (
            self.codes.get(f"{verb} {'killed' if answer is None else code}", 0) + 1
        )
        if one is None:
            if code:
                raise Finding(f"{verb}: {answer}")
            return
        before = self.model.attachments.get(one.name)
        if answer is None:
            if verb == "DEL" and before is None:
                return
            after = before if before is not None and verb == "DEL" else one
            after.sure, after.damaged = False, after.damaged or (before is not None and before.damaged)
            self.model.attachments[one.name] = after
            vars(after).setdefault("named", self.names[after.network])
        elif verb == "ADD":
            if code:
                raise Finding(f"ADD of {one.name}: {answer}")
            fresh = Attachment(one.name, one.network, one.address, self.wanted(one.network, one.name))
            vars(fresh)["named"] = self.names[one.network]
            if before is not None and before.sure and not before.damaged and before.wanted == fresh.wanted:
                fresh.ports = frozenset() if before.old or before.flushed else before.ports
            self.model.attachments[one.name] = fresh
        elif verb == "DEL":
            if code:
                raise Finding(f"DEL of {one.name}: {answer}")
            self.model.attachments.pop(one.name, None)
            self.flushed.discard(one.name)
            if before is not None and before.damaged and self.is_excused(before):
                self.model.excused.add(one.name)
        elif verb == "CHECK":
            whole = one.sure and not (one.flushed or one.damaged or one.old)
            if code not in ((0,) if whole else (0, 101)):
                raise Finding(f"CHECK of {one.name}, {one}: {answer}")

    def _GC(self, step: Step) -> None:
        keep = [
            {"containerID": one.name, "ifname": "eth0"}
            for one in self.model.attachments.values()
            if one.name not in self.flushed
        ]
        running = Running(self.work("GC", step.network, **{VALID: keep}), "GC", step, None)
        self.note(running, running.ended())
        for name in sorted(self.flushed):
            one = self.model.attachments.get(name)
            if one is not None and self.name_of(one) == self.names[step.network] and one.network == step.network:
                del self.model.attachments[name]
                self.flushed.discard(name)

    def _config(self, step: Step) -> None:
        if step.network in self.exposed:
            self.exposed[step.network] = EXPOSED[step.choice % len(EXPOSED)]

    def _rename(self, step: Step) -> None:
        """The network gets another name, for good."""
        self.renames += 1
        self.names[step.network] = f"{step.network}-{self.renames}"

    def _flush(self, _step: Step) -> None:
        run("nft", "flush", "ruleset")
        for one in self.model.attachments.values():
            one.flushed = True

    def _reboot(self, _step: Step) -> None:
        self._flush(_step)
        self.boot()
        for one in self.model.attachments.values():
            one.old = True

    def _repair(self, _step: Step) -> None:
        """`cnimeta ports repair`: everything that lives and is told of gets its rules back."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("cnimeta")), "ports", "repair", "--data-dir", DATA, "--json"],
            env={"PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1) or "Traceback" in done.stderr:
            raise Finding(f"ports repair: {done.returncode} {done.stdout} {done.stderr}")

    def _outage(self, step: Step) -> None:
        """The API server answers nobody for some requests."""
        from cnimeta.testing.kube import Fault

        self.pods.pods.faults = [Fault(status=503), Fault(drop=True), Fault(status=500)] * (1 + step.choice % 3)

    def _damage(self, step: Step, change: Callable[[bytes, int], bytes | None]) -> None:
        files = sorted(path for path in Path(DATA).rglob("*") if path.is_file() and "locks" not in str(path))
        if not files:
            return
        path = files[step.choice % len(files)]
        data = path.read_bytes()
        changed = change(data, int(step.at * len(data)))
        if changed is None:
            path.unlink()
        else:
            path.write_bytes(changed)
        for one in self.model.attachments.values():
            one.damaged = True

    def _flip(self, step: Step) -> None:
        self._damage(
            step,
            lambda data, at: data[:at] + bytes([data[at] ^ 1 << step.choice % 8]) + data[at + 1 :] if data else data,
        )

    def _cut(self, step: Step) -> None:
        self._damage(step, lambda data, at: data[:at])

    def _lose(self, step: Step) -> None:
        self._damage(step, lambda _data, _at: None)

    # --- looking ---------------------------------------------------------------------------------------------

    def seen(self) -> Seen:
        rules = look("/nowhere").ours
        records = set()
        if os.path.exists(f"{DATA}/cnimeta.db"):
            with (
                contextlib.suppress(sqlite3.DatabaseError),
                contextlib.closing(sqlite3.connect(f"{DATA}/cnimeta.db")) as base,
            ):
                records |= {str(row[0]) for row in base.execute("SELECT container_id FROM attachments")}
        for path in Path(DATA, "portmap").glob("*.json"):
            with contextlib.suppress(ValueError, KeyError):
                records.add(json.loads(path.read_bytes())["record"]["containerID"])
        return Seen(rules, frozenset(records), tuple(f"still running: {one}" for one in strays(self.known)))

    def look(self) -> None:
        """Raise Finding for what the model does not allow."""
        found = self.model.breaches(self.seen())
        if found:
            raise Finding("; ".join(found[:5]))

    def end(self) -> None:
        """DEL of everything leaves nothing."""
        for name in sorted(self.model.attachments):
            one = self.model.attachments[name]
            running = Running(self.work("DEL", one.network, name), "DEL", Step("DEL", 0, one.network, 0, 0), one)
            self.note(running, running.ended())
        self.look()


class Running:
    """A command in a fork of its own, to be killed after a while where the step says so."""

    def __init__(
        self, work: Callable[[], dict[str, Any]], verb: str, step: Step, attachment: Attachment | None
    ) -> None:
        self.verb, self.attachment = verb, attachment
        self.kill_at = time.monotonic() + 0.002 + step.at * 0.12 if step.kind.startswith("killed") else None
        self.pid, self.reader = forked(work)

    def ended(self) -> dict[str, Any] | None:
        """The answer; None when it was killed before it gave one."""
        if self.kill_at is not None:
            time.sleep(max(0.0, self.kill_at - time.monotonic()))
            os.kill(self.pid, signal.SIGKILL)
        with open(self.reader, "rb") as stream:
            data = stream.read()
        os.waitpid(self.pid, 0)
        if not data:
            if self.kill_at is None:
                raise Finding(f"{self.verb} ended without an answer")
            return None
        with contextlib.suppress(ValueError):
            found: dict[str, Any] = json.loads(data)
            return found
        return None


def address_of(name: str) -> str:
    number = int(name[1:])
    return f"10.88.{1 + number // 200}.{1 + number % 200}"


def code_of(answer: dict[str, Any]) -> int:
    if answer["status"] == 0:
        return 0
    try:
        return int(json.loads(answer["stdout"])["code"])
    except (ValueError, KeyError):
        return 999


def draw_seeded(seed: str) -> random.Random:
    return random.Random(seed)
