"""Every call of a command fails once, each program that it starts too; what has to hold afterwards."""

from __future__ import annotations

import importlib
import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tracing
from fault_settings import CODES, VERBS, Setting, conf
from stage import BIN, CONTAINERS, Stage, command, plain, reap, shell, strays
from tracing import Call, Outcome

from cnimeta.testing.kube import Fault, PodServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ERRORS = {
    "openat": ("EMFILE", "EIO", "ENOMEM", "EACCES", "ENOSPC", "EINTR"),
    "read": ("EIO", "EINTR", "ENOMEM"),
    "pread64": ("EIO",),
    "write": ("EIO", "ENOSPC", "EINTR"),
    "pwrite64": ("EIO", "ENOSPC"),
    "newfstatat": ("EIO", "EACCES", "ENOMEM"),
    "readlink": ("EIO", "EACCES", "ENOMEM"),
    "getdents64": ("EIO",),
    "statfs": ("EIO",),
    "ftruncate": ("EIO",),
    "fallocate": ("ENOSPC", "EOPNOTSUPP"),
    "fsync": ("EIO", "ENOSPC"),
    "fdatasync": ("EIO",),
    "rename": ("EIO", "ENOSPC"),
    "link": ("EIO", "EPERM"),
    "unlink": ("EIO", "EROFS"),
    "mkdir": ("ENOSPC", "EACCES"),
    "rmdir": ("EIO",),
    "fcntl": ("EIO", "ENOLCK"),
    "flock": ("ENOLCK", "EINTR", "EIO"),
    "lseek": ("EIO",),
    "close": ("EIO",),
    "mmap": ("ENOMEM",),
    "socket": ("EMFILE", "ENOBUFS", "EAFNOSUPPORT", "EPROTONOSUPPORT"),
    "bind": ("ENOMEM", "EADDRINUSE"),
    "listen": ("EADDRINUSE",),
    "connect": ("ENETUNREACH", "EAGAIN"),
    "getsockname": ("ENOBUFS",),
    "setsockopt": ("ENOMEM",),
    "sendto": ("ENOBUFS", "EINTR", "ENOMEM", "EPERM"),
    "sendmsg": ("ENOBUFS", "EINTR", "ENOMEM"),
    "recvfrom": ("ENOBUFS", "EINTR", "EAGAIN", "ENOMEM"),
    "recvmsg": ("ENOBUFS", "EINTR", "ENOMEM"),
    "poll": ("EINTR", "ENOMEM"),
    "pipe2": ("EMFILE", "ENFILE"),
    "vfork": ("EAGAIN", "ENOMEM"),
    "clone": ("EAGAIN", "ENOMEM"),
    "clone3": ("EAGAIN", "ENOMEM"),
    "wait4": ("EINTR", "ECHILD"),
    "pidfd_open": ("EMFILE", "ENOSYS"),
    "setns": ("EPERM", "ENOMEM"),
    "ioctl": ("EIO", "ENODEV"),
}
"""Each call with the errors that it may plausibly give."""
ENDS_WITHOUT_ANSWER = {"setns": 70}
"""A process that cannot come back from a container's namespace ends at once: it must not go on there."""

WRAPPER = """#!/bin/sh
# The program $name, one call of which goes wrong.
n=$(($(cat /run/count 2>/dev/null || echo 0) + 1)); echo $n > /run/count
[ "$n" = "$(cat /run/strike)" ] || exec $real "$@"
case $(cat /run/how) in
refused) cat > /dev/null; echo 'Error: Could not process rule: Cannot allocate memory' >&2; exit 1 ;;
silent) exit 3 ;;
killed) kill -9 $$ ;;
cut) $real "$@" > /run/out; status=$?; head -c $(($(stat -c %s /run/out) / 2)) /run/out; exit $status ;;
garbled) cat > /dev/null; echo '}{'; exit 0 ;;
late) sleep 0.3; exec $real "$@" ;;
lost) $real "$@" > /dev/null; kill -9 $$ ;;
esac
"""
WAYS = ("refused", "silent", "killed", "cut", "garbled", "late", "lost")
"""How a program fails: in words, without any, killed before it does anything, its output cut or nonsense, slowly, killed
when all is done.
"""


API = "api"
ANSWERS = {
    **{str(status): Fault(status=status) for status in (400, 401, 403, 404, 409, 422, 429, 500, 503)},
    "429 for long": Fault(status=429, retry_after_s=60),
    "cut": Fault(drop=True),
    "late": Fault(delay_s=3),
    "lost": Fault(drop=True, after=True),
    "500 when done": Fault(status=500, after=True),
}
"""How a request to the API server ends, the n-th of a command."""

KILLED = {
    *("write", "pwrite64", "ftruncate", "fallocate", "rename", "link", "unlink", "mkdir", "rmdir", "fchmod"),
    *("sendto", "sendmsg", "vfork", "clone", "clone3", "setns", "flock", "connect"),
}
"""A kill before any other call is one before the next of these."""


class Strike(NamedTuple):
    """What happens: to a system call (`how` as strace's inject says it), or to the n-th call of the wrapped program."""

    verb: str
    what: Call
    how: str


class Report(NamedTuple):
    """What a run of strikes gave. `answers`: how often each code was answered; a killed process counts as -9."""

    cases: int
    answers: dict[int, int]
    findings: list[str]


def changes(call: Call, line: str) -> bool:
    """Whether a call changes something, so that a kill before it differs from one after."""
    return call.name in KILLED or (call.name == "openat" and "O_CREAT" in line)


class Attack:
    """Strikes on one setting, on one node."""

    def __init__(self, setting: Setting, targets: dict[str, Any], sample: int, seed: str) -> None:
        self.setting, self.sample, self.random = setting, sample, random.Random(seed)
        self.stage = Stage(targets, shaped=setting.plugin == "bandwidth" or setting.wrapper)
        self.pods = PodServer("/run") if setting.api else None
        if self.pods is not None:
            importlib.import_module("kubernetes.client")  # which a second goes by for, under load
            self.pods.kubeconfig("/run/kubeconfig", token=self.pods.token("cnimeta"))
            for name in CONTAINERS:
                self.pods.pods.create("default", name, uid=f"uid-{name}", annotations={})
        self.answers: dict[int, int] = {}
        self.findings: list[str] = []
        self.cases = 0
        self.known = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self.must("ADD", "c0")
        for verb in ("ADD", "DEL"):
            self.must(verb, "c1")
        self.before = self.stage.state()

    def command(self, verb: str, name: str = "c1") -> Callable[[], dict[str, Any]]:
        valid = ("c0", "c1") if verb == "GC" else ()
        given = conf(self.setting, verb, name, valid)
        return command(lambda: self.stage.plugin(self.setting.plugin), verb, name, given)

    def must(self, verb: str, name: str) -> None:
        done = plain(self.command(verb, name))
        assert done["status"] == 0, (verb, name, done)

    def report(self) -> Report:
        for verb in VERBS:
            for strike in self.strikes(verb):
                self.cases += 1
                self.take(strike)
        return Report(self.cases, dict(sorted(self.answers.items())), self.findings)

    # --- what happens ----------------------------------------------------------------------------------------

    def strikes(self, verb: str) -> Iterator[Strike]:
        self.prepare(verb)
        outcome, found = tracing.every_call(tracing.bounded(self.command(verb)), tuple(ERRORS), "/run/trace")
        assert outcome.answer is not None, outcome
        assert outcome.answer["status"] == 0, (verb, outcome)
        self.restore(verb)
        every = [Strike(verb, call, f"error={error}") for call, _ in found for error in ERRORS[call.name]]
        every += [Strike(verb, call, "signal=KILL") for call, line in found if changes(call, line)]
        every += [
            Strike(verb, call, "retval=0") for call, line in found if call.name == "read" and line.endswith("> 0")
        ]
        for program in self.setting.programs:
            times = self.times_started(verb, program)
            every += [Strike(verb, Call(program, number), how) for number in range(1, times + 1) for how in WAYS]
        if self.pods is not None and verb == "ADD":
            every += [Strike(verb, Call(API, number), how) for number in (1, 2, 3) for how in ANSWERS]
        assert len(found) > 3, found
        yield from every if self.sample == 0 else self.random.sample(every, min(self.sample, len(every)))

    def times_started(self, verb: str, program: str) -> int:
        self.prepare(verb)
        with Wrapped(program, 0, ""):
            plain(self.command(verb))
            times = Wrapped.count()
        self.restore(verb)
        return times

    def prepare(self, verb: str) -> None:
        if verb in ("DEL", "CHECK"):
            self.must("ADD", "c1")
        elif verb == "GC":
            self.must("ADD", "c1")
            self.must("ADD", "c2")

    def restore(self, verb: str) -> None:
        if verb == "GC":
            self.must("DEL", "c2")
        self.must("DEL", "c1")

    # --- what has to hold ------------------------------------------------------------------------------------

    def take(self, strike: Strike) -> None:
        self.prepare(strike.verb)
        work = self.command(strike.verb)
        if strike.what.name == API and self.pods is not None:
            self.pods.pods.faults = [Fault(delay_s=0)] * (strike.what.number - 1) + [ANSWERS[strike.how]]
            outcome = Outcome(0, plain(work))
            self.pods.pods.faults = []
        elif strike.what.name in self.setting.programs:
            with Wrapped(strike.what.name, strike.what.number, strike.how):
                outcome = Outcome(0, plain(work))
        else:
            outcome = tracing.struck(tracing.bounded(work), strike.what, strike.how)
        self.judge(strike, outcome)
        if strike.verb in ("GC", "STATUS"):
            self.expect(strike, strike.verb, "c1")
        for name in ("c2", "c1"):
            if name == "c1" or strike.verb == "GC":
                self.expect(strike, "DEL", name)
        now = self.stage.settled(self.before)
        reap()
        if now != self.before:
            more, less = sorted(now - self.before), sorted(self.before - now)
            self.find(strike, f"left {more[:3]}, gone {less[:3]}")
            self.expect(strike, "CHECK", "c0")
            self.clean()
        left = strays(self.known)
        if left:
            self.find(strike, f"still running: {left}")

    def judge(self, strike: Strike, outcome: Outcome) -> None:
        if strike.how == "signal=KILL" and outcome.signal == 9:
            self.count(-9)
            return
        if outcome.answer is None:
            ended = ENDS_WITHOUT_ANSWER.get(strike.what.name)
            if outcome.status != ended:
                self.find(strike, f"no answer: {outcome}")
            self.count(-1)
            return
        code, text = 0, outcome.answer.get("stdout", repr(outcome.answer))
        if outcome.answer.get("status") != 0 or strike.verb == "ADD":
            try:
                document = json.loads(text)
                code = document.get("code", 0)
            except ValueError:
                self.find(strike, f"no document: {outcome.answer}")
                return
        self.count(code)
        if code not in CODES[strike.verb]:
            self.find(strike, f"answered {code}: {text.strip()[:300]}")

    def expect(self, strike: Strike, verb: str, name: str) -> None:
        """A plain command serves, whatever happened to the one before."""
        done = plain(self.command(verb, name))
        if done["status"] != 0:
            self.find(strike, f"then {verb} of {name}: {done['stdout'].strip()[:300]}")

    def count(self, code: int) -> None:
        self.answers[code] = self.answers.get(code, 0) + 1

    def find(self, strike: Strike, what: str) -> None:
        self.findings.append(f"{strike.verb} {strike.what.name}#{strike.what.number} {strike.how}: {what}")

    def clean(self) -> None:
        """As at first, so that one finding is told once."""
        for verb, name in (("DEL", "c1"), ("DEL", "c2"), ("DEL", "c0"), ("ADD", "c0")):
            plain(self.command(verb, name))
        self.before = self.stage.state()


class Wrapped:
    """A program in BIN that goes wrong at its n-th call, for a `with` block."""

    def __init__(self, program: str, number: int, how: str) -> None:
        self.path, self.number, self.how = Path(BIN, program), number, how
        self.kept = self.path.read_bytes() if self.path.exists() else None

    def __enter__(self) -> None:
        real = self.path.with_suffix(".real") if self.kept is not None else Path(f"/usr/sbin/{self.path.name}")
        if self.kept is not None:
            self.path.rename(real)
        text = WRAPPER.replace("$name", self.path.name).replace("$real", str(real))
        self.path.write_text(text, encoding="ascii")
        self.path.chmod(0o755)
        Path("/run/strike").write_text(str(self.number), encoding="ascii")
        Path("/run/how").write_text(self.how, encoding="ascii")
        shell("rm", "-f", "/run/count")

    def __exit__(self, *_: object) -> None:
        self.path.unlink()
        if self.kept is not None:
            self.path.with_suffix(".real").rename(self.path)

    @staticmethod
    def count() -> int:
        """How often it was started."""
        path = Path("/run/count")
        return int(path.read_text(encoding="ascii")) if path.exists() else 0
