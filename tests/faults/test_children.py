"""Plugins killed while a slow program works for them: nothing comes after the DEL that follows."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fault_settings import SETTINGS, conf
from sandbox import inside
from stage import BIN, Stage, command, environ, plain, reap, strays

from cnimeta.plugin.registry import installed

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]

KILLS = 200 if os.environ.get("CNIMETA_EVERY") else 8
SLOW = '#!/bin/sh\n[ ! -e /run/slow ] || { echo >> /run/started; sleep 1; }\nexec $real "$@"\n'
# portmap on nftables starts no program where its base is there: its transactions are the process's own.
SLOWED = {
    "portmap iptables": "iptables-nft-restore",
    "hostport_alloc iptables": "iptables-nft-restore",
    "hostport_alloc wrapped": "bridge",
}


def killed(name: str, kills: int) -> tuple[list[str], int]:
    """What is left of killed ADDs, and how often the slow program had been started."""
    stage, setting, chance = Stage(installed(), shaped=False), SETTINGS[name], random.Random(name)
    path, program = Path(BIN, SLOWED[name]), SLOWED[name]
    real = path.with_suffix(".real") if path.exists() else Path("/usr/sbin", program)
    if path.exists():
        path.rename(real)
    path.write_text(SLOW.replace("$real", str(real)), encoding="ascii")
    path.chmod(0o755)
    known = {int(one) for one in os.listdir("/proc") if one.isdigit()}
    before = stage.state()

    def work(verb: str) -> dict[str, Any]:
        return plain(command(lambda: stage.plugin(setting.plugin), verb, "c1", conf(setting, verb, "c1")))

    assert work("ADD")["status"] == work("DEL")["status"] == 0
    before |= {line for line in stage.state() if "c1" not in line}  # what is shared stays
    found: list[str] = []
    text = json.dumps(conf(setting, "ADD", "c1"))
    for _ in range(kills):
        Path("/run/slow").touch()
        process = subprocess.Popen(
            [f"{BIN}/{setting.plugin}"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environ("ADD", "c1")
        )
        assert process.stdin is not None
        process.stdin.write(text.encode())
        process.stdin.close()
        before_it = started()
        while started() == before_it and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.3)
        process.kill()
        process.wait()
        Path("/run/slow").unlink()
        done = work("DEL")
        found += [f"DEL: {done}"] * (done["status"] != 0)
        time.sleep(0.02)
        found += [f"still running: {left}" for left in strays(known)]
        reap()
    time.sleep(1.2)
    found += sorted(stage.state() - before)
    return found, started()


def started() -> int:
    """How often the slow program was."""
    path = Path("/run/started")
    return len(path.read_text(encoding="ascii")) if path.exists() else 0


@pytest.mark.parametrize("name", SLOWED)
def test_nothing_comes_after_del_when_add_was_killed_while_a_slow_program_worked(name: str) -> None:
    found, times = inside(functools.partial(killed, name, KILLS // len(SLOWED)), 800)
    print(f"{name}: {KILLS // len(SLOWED)} kills, {times} of them while {SLOWED[name]} was at work")
    assert found == []
    assert times >= KILLS // len(SLOWED)
