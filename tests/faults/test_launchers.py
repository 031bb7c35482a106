"""The launcher's own process: each read of a file of the installation fails once, from its first line on.

What the interpreter reads before that is not ours to answer for.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from fault_settings import SETTINGS, conf
from sandbox import inside
from stage import BIN, Stage, environ

from cnimeta.plugin.registry import installed

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.crash, pytest.mark.timeout(3600)]

ERRORS = {
    "openat": ("EIO", "EMFILE", "ENOMEM", "EACCES"),
    "read": ("EIO", "ENOMEM"),
    "newfstatat": ("EIO", "ENOMEM"),
    "getdents64": ("EIO",),
    "mmap": ("ENOMEM",),
}
SAMPLE = 0 if os.environ.get("CNIMETA_EVERY") else int(os.environ.get("CNIMETA_STRIKES", "4"))


class Case(NamedTuple):
    """The number-th call of its name, and the error that it gets."""

    call: str
    number: int
    error: str


def run(name: str, *under: str) -> subprocess.CompletedProcess[str]:
    """ADD; portmap and hostport_alloc find a wrong key in the end."""
    setting = SETTINGS[name]
    given = conf(setting, "ADD", "c0") | {
        "ranges": {"default": "1-0"},
        "runtimeConfig": {"portMappings": 5, "bandwidth": 5},
    }
    return subprocess.run(
        [*under, f"{BIN}/{setting.plugin}"],
        input=json.dumps(given), env=environ("ADD", "c0"), capture_output=True, text=True, check=False,
    )  # fmt: skip


def cases(name: str) -> Iterator[Case]:
    run(name, "strace", "-qq", "-y", "-o", "/run/trace", "-e", f"trace={','.join(ERRORS)}")
    counts: Counter[str] = Counter()
    lines = Path("/run/trace").read_text("utf-8", "replace").splitlines()
    begun = max(at for at, line in enumerate(lines) if f"{BIN}/{SETTINGS[name].plugin}" in line)
    for at, line in enumerate(lines):
        match = re.match(r"(\w+)\(", line)
        if match is None:
            continue
        counts[match[1]] += 1
        for error in ERRORS.get(match[1], ()) if at > begun else ():
            yield Case(match[1], counts[match[1]], error)


def struck(name: str) -> tuple[int, dict[int, int], list[str]]:
    """How many cases there were, what was answered, and what broke the law."""
    Stage(installed(), shaped=False)
    every = list(cases(name))
    assert len(every) > 100, every
    chosen = every if SAMPLE == 0 else random.Random(name).sample(every, SAMPLE)
    codes: Counter[int] = Counter()
    found = []
    for case in chosen:
        inject = f"inject={case.call}:error={case.error}:when={case.number}"
        done = run(name, "strace", "-qq", "-o", "/dev/null", "-e", f"trace={case.call}", "-e", inject)
        try:
            code = json.loads(done.stdout).get("code", 0)
        except ValueError:
            code = -1
        codes[code] += 1
        if code not in (0, 5, 7, 11) or done.returncode != (code != 0) or done.stderr:
            found.append(f"{case}: {done.returncode} {done.stdout[:200]} {done.stderr[-300:]}")
    return len(chosen), dict(codes), found


@pytest.mark.parametrize("name", ["portmap nftables", "bandwidth", "hostport_alloc nftables"])
def test_one_document_is_answered_when_a_file_of_the_installation_cannot_be_read(name: str) -> None:
    number, codes, found = inside(functools.partial(struck, name), 3500)
    print(f"{name}: {number} failed reads of the launcher, answers {codes}")
    assert not found, "\n".join(found)
