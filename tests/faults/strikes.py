"""Every call of a command fails once, each program that it starts too; what has to hold afterwards."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import re
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ptrace
import tracing
from fault_settings import CODES, VERBS, Setting, conf
from stage import BIN, CONTAINERS, Stage, command, descended, forked, launched, plain, reap, shell, strays, words_of
from tracing import Call, Outcome

from cnimeta.testing.agent import RunningAgent, eventually
from cnimeta.testing.kube import Fault, PodServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
LACKING = ("EPROTONOSUPPORT",)
"""What says that the kernel lacks netlink for netfilter; it does not lose that while it holds rules."""
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


HELD = KILLED | {"openat", "newfstatat", "readlink", "getdents64", "pread64", "recvfrom", "recvmsg"}
"""Calls before which another command runs whole: what is read may change after it, what is written before it."""
CUT = ("read", "pread64", "write", "pwrite64", "sendto", "recvfrom")
"""Calls that may do a part of what they are asked for: on files, pipes and streams, not on datagrams."""
WHOLE = re.compile(r"NETLINK:|DGRAM|UDP|/proc/sys/")
"""What is given whole or not at all: datagrams, and settings, of which the kernel gives no second part."""
GIVEN = "memfd:conf"
"""The configuration on stdin: an end that comes early makes it another one."""
_MEANWHILE_S = 0.3
"""So long a call is held at most: the other command may wait for what the held one has."""
_SAMPLED = 3
"""Verbs of a setting in a sample."""
_RENEWED = 50
"""After so many strikes what stands from one to the next is taken down, and made anew."""
LAUNCHED = ("ADD", "DEL")
"""The verbs for which launchers are struck: until the agent has accepted, they do the same for each."""
WORKER, LAUNCHER = "worker", "launcher"


class Strike(NamedTuple):
    """What happens: to a system call (`how` as strace's inject says it, or below), to the n-th call of the wrapped
    program, or to the n-th request to the API server. `where`: in which process, if an agent serves.
    """

    verb: str
    what: Call
    how: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.where}{self.where and ' '}{self.what.name}#{self.what.number} {self.how}"


class Report(NamedTuple):
    """What a run of strikes gave. `answers`: how often each code was answered; a killed process counts as -9."""

    cases: int
    answers: dict[int, int]
    findings: list[str]


def changes(call: Call, line: str) -> bool:
    """Whether a call changes something, so that a kill before it differs from one after."""
    return call.name in KILLED or (call.name == "openat" and "O_CREAT" in line)


def thinned(found: list[tuple[Call, str]]) -> list[tuple[Call, str]]:
    """The calls that are struck: of those that look the same in the trace, with the same outcome, the first two and the
    last. Descriptors by what they lead to, numbers of processes, inodes and sockets, and addresses left out.
    """
    alike: dict[str, list[int]] = {}
    for place, (_, line) in enumerate(found):
        alike.setdefault(re.sub(r"0x[0-9a-f]+|(?<=[\[(])\d+(?=[\]<])|(?<=\()\d+(?=<)", "", line), []).append(place)
    kept = {place for places in alike.values() for place in (*places[:2], places[-1])}
    return [found[place] for place in sorted(kept)]


def ways(call: Call, line: str) -> Iterator[str]:
    """How a call goes wrong that looks like this in the trace."""
    for error in ERRORS[call.name]:
        if error not in LACKING or "AF_NETLINK" not in line:
            yield f"error={error}"
    if changes(call, line):
        yield "signal=KILL"
    done = re.search(r" = (\d+)$", line)
    if done is not None and call.name == "read" and int(done[1]) > 0 and GIVEN not in line:
        yield "retval=0"


def more_ways(call: Call, line: str) -> Iterator[str]:
    """What may happen to a call that strace cannot do."""
    done = re.search(r" = (\d+)$", line)
    if done is not None and call.name in CUT and int(done[1]) > 1 and GIVEN not in line and not WHOLE.search(line):
        yield f"cut={int(done[1]) // 2}"
    if call.name in HELD:
        yield "held"


class Attack:
    """Strikes on one setting, on one node."""

    def __init__(self, setting: Setting, targets: dict[str, Any], sample: int, seed: str) -> None:
        self.setting, self.sample, self.random = setting, sample, random.Random(seed)
        shaped = setting.plugin == "bandwidth" or setting.wrapper
        self.stage = Stage(targets, shaped=shaped, iptables=setting.iptables, agent=setting.agent)
        self.pods = PodServer("/run") if setting.api else None
        if self.pods is not None:
            importlib.import_module("kubernetes.client")  # which a second goes by for, under load
            self.pods.kubeconfig("/run/kubeconfig", token=self.pods.token("cnimeta"))
            for name in CONTAINERS:
                self.pods.pods.create("default", name, uid=f"uid-{name}", annotations={})
        self.agent = RunningAgent(Path("/run/agent"), "--workers", "1", "--deliver", "0") if setting.agent else None
        self.answers: dict[int, int] = {}
        self.findings: list[str] = []
        self.cases = 0
        self.known = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self.must("ADD", "c0")
        for verb in ("ADD", "DEL"):
            self.must(verb, "c1")
        self.before = self.wanted = self.stage.state()

    def command(self, verb: str, name: str = "c1") -> Callable[[], dict[str, Any]]:
        """The plugin's work, in the process that calls it."""
        return command(lambda: self.stage.plugin(self.setting.plugin), verb, name, self.conf(verb, name))

    def conf(self, verb: str, name: str) -> dict[str, Any]:
        return conf(self.setting, verb, name, ("c0", "c1", "c3") if verb == "GC" else ())

    def launcher(self, verb: str, name: str = "c1") -> Callable[[], dict[str, Any]]:
        """The launcher, in place of the process that calls it."""
        assert self.agent is not None
        return launched(self.setting.plugin, verb, name, self.conf(verb, name), self.agent.environ)

    def serve(self, verb: str, name: str = "c1") -> dict[str, Any]:
        """The answer of a command with nothing in its way."""
        if self.agent is None:
            return plain(self.command(verb, name))
        return tracing.untraced(self.launcher(verb, name), becomes_program=True).answer or {"status": -1, "stdout": ""}

    def must(self, verb: str, name: str) -> None:
        done = self.serve(verb, name)
        assert done["status"] == 0, (verb, name, done)

    def report(self) -> Report:
        """A sample: some strikes on some verbs."""
        for verb in self.random.sample(VERBS, _SAMPLED):
            every = self.strikes(verb)
            for _ in self.taken(self.random.sample(every, min(self.sample, len(every)))):
                pass
        return Report(self.cases, dict(sorted(self.answers.items())), self.findings)

    # --- what happens ----------------------------------------------------------------------------------------

    def strikes(self, verb: str) -> list[Strike]:
        """Every strike on a verb."""
        if self.agent is not None:
            launchers = self.strikes_on(verb, LAUNCHER) if verb in LAUNCHED else []
            return [*self.strikes_on(verb, WORKER), *launchers]
        found = self.traced(verb)
        every = [Strike(verb, call, how) for call, line in found for how in (*ways(call, line), *more_ways(call, line))]
        for program in self.setting.programs:
            times = self.times_started(verb, program)
            every += [Strike(verb, Call(program, number), how) for number in range(1, times + 1) for how in WAYS]
        if self.pods is not None and verb == "ADD":
            every += [Strike(verb, Call(API, number), how) for number in (1, 2, 3) for how in ANSWERS]
        return every

    def strikes_on(self, verb: str, where: str) -> list[Strike]:
        return [Strike(verb, call, how, where) for call, line in self.traced(verb, where) for how in ways(call, line)]

    def traced(self, verb: str, where: str = "") -> list[tuple[Call, str]]:
        """The calls of a verb, each with its line in the trace."""
        self.prepare(verb)
        names = tuple(ERRORS)
        if where == WORKER:
            outcome = self.in_worker(verb, tracing.traced({*names, "accept4"}), "/run/trace")
            found = list(tracing.between("/run/trace", names, lambda line: "accept4(" in line, lambda _: False))
        elif where == LAUNCHER:
            outcome = tracing.run(
                self.launcher(verb), tracing.traced({*names, "execve"}), "/run/trace", becomes_program=True
            )
            # What an interpreter does before it opens the launcher is not ours.
            own = "execve(" if self.setting.agent == "native" else "openat("
            own_line = re.compile(re.escape(own) + f".*{BIN}/{self.setting.plugin}")
            found = list(tracing.between("/run/trace", names, own_line.search, lambda _: False))
        else:
            outcome, found = tracing.every_call(tracing.bounded(self.command(verb)), names, "/run/trace")
        assert outcome.answer is not None, outcome
        assert outcome.answer["status"] == 0, (verb, outcome)
        assert len(found) > 3, found
        self.restore(verb)
        return thinned(found)

    def in_worker(self, verb: str, trace: str, output: str, inject: str = "") -> Outcome:
        """A command that is served by the one worker that waits, under strace."""
        worker = self.waiting()
        with tracing.struck_process(worker, trace, output, inject):
            outcome = tracing.untraced(self.launcher(verb), becomes_program=True)
            # It would wait for the next launcher, and strace for it.
            eventually(lambda: not os.path.exists(f"/proc/{worker}") or is_in(worker, "epoll_wait"))
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        return outcome

    def waiting(self) -> int:
        """The process ID of the worker that waits for a connection."""
        assert self.agent is not None
        found: list[int] = []

        def waits() -> bool:
            assert self.agent is not None
            found[:] = [pid for pid in self.agent.workers() if is_in(pid, "epoll_wait")]
            return len(found) == 1

        eventually(waits)
        return found[0]

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

    def happen(self, strike: Strike) -> Outcome:
        """The command, and what happens to it."""
        call, how = strike.what, strike.how
        inject = f"inject={call.name}:{how}:when={call.number}"
        if strike.where == WORKER:
            return self.in_worker(strike.verb, f"trace={call.name}", "/dev/null", inject)
        if strike.where == LAUNCHER:
            launcher = self.launcher(strike.verb)
            return tracing.run(launcher, f"trace={call.name}", "/dev/null", inject, becomes_program=True)
        work = self.command(strike.verb)
        if call.name == API and self.pods is not None:
            self.pods.pods.faults = [Fault(delay_s=0)] * (call.number - 1) + [ANSWERS[how]]
            outcome = Outcome(0, plain(work))
            self.pods.pods.faults = []
            return outcome
        if call.name in self.setting.programs:
            with Wrapped(call.name, call.number, how):
                return Outcome(0, plain(work))
        if how.startswith("cut="):
            return tracing.cut(tracing.bounded(work), call, int(how.removeprefix("cut=")))
        if how == "held":
            return self.held(strike, tracing.bounded(work))
        return tracing.struck(tracing.bounded(work), call, how)

    def held(self, strike: Strike, work: Callable[[], dict[str, Any]]) -> Outcome:
        """ADD and DEL of another container run while the call is held, or as long as they need not wait for it."""
        others = {verb: self.command(verb, "c3") for verb in ("ADD", "DEL")}
        started: list[tuple[int, int]] = []

        def meanwhile() -> None:
            started.append(forked(lambda: {verb: one() for verb, one in others.items()}))
            select.select([started[0][1]], [], [], _MEANWHILE_S)

        outcome = tracing.held(work, strike.what, meanwhile)
        for pid, reader in started:
            with open(reader, "rb") as stream:
                answers = json.loads(stream.read())
            os.waitpid(pid, 0)
            for verb in others:
                if answers.get(verb, answers).get("status") != 0:
                    self.find(strike, f"{verb} of c3 meanwhile: {answers}")
        if outcome.answer is not None and outcome.answer.get("status") != 0:
            self.find(strike, f"failed, though nothing did: {outcome.answer}")
        return outcome

    # --- what has to hold ------------------------------------------------------------------------------------

    def taken(self, strikes: Iterable[Strike]) -> Iterator[Strike]:
        """Take strikes, all of one verb. What the verb is not to change stays from one to the next."""
        stands = False
        for number, strike in enumerate(strikes):
            if stands and number % _RENEWED == 0:
                stands = self.renewed(strike)
            if strike.verb in ("CHECK", "GC") and not stands:
                self.must("ADD", "c1")
                self.wanted, stands = self.stage.state(), True
            if not self.take(strike):
                self.clean()
                stands = False
            yield strike
        if stands:
            self.renewed(strike)

    def renewed(self, strike: Strike) -> bool:
        """Take down what has stood, after which all has to be as before. False: nothing stands any more."""
        self.expect(strike, "DEL", "c1")
        self.wanted = self.before
        if not self.is_as_wanted(strike):
            self.clean()
        return False

    def take(self, strike: Strike) -> bool:
        """One strike, and what has to hold then. False when all is to be made anew."""
        self.cases += 1
        if strike.verb == "GC":
            self.must("ADD", "c2")
        elif strike.verb == "DEL":
            self.must("ADD", "c1")
        self.judge(strike, self.happen(strike))
        if strike.verb in ("GC", "STATUS"):
            self.expect(strike, strike.verb, "c1")
            if strike.verb == "GC" and self.setting.plugin == "bandwidth":
                self.expect(strike, "DEL", "c2")  # it keeps no record that GC could go by
        elif strike.verb != "CHECK":
            self.expect(strike, "DEL", "c1")
        return self.is_as_wanted(strike)

    def is_as_wanted(self, strike: Strike) -> bool:
        """Whether nothing is left and nothing is missing; what is, is found."""
        now = self.stage.settled(self.wanted)
        reap()
        if now != self.wanted:
            more, less = sorted(now - self.wanted), sorted(self.wanted - now)
            self.find(strike, f"left {more[:3]}, gone {less[:3]}")
            self.expect(strike, "CHECK", "c0")
        left = strays(self.known, more=self.of_agent)
        if left:
            self.find(strike, f"still running: {left}")
        return now == self.wanted

    def of_agent(self) -> set[int]:
        """The agent's own processes, those of its rehearsal too; no program that a command has started."""
        if self.agent is None:
            return set()
        return {pid for pid in descended({self.agent.process.pid}) if " agent --socket " in words_of(pid)}

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
        if code not in CODES[strike.verb] and not (
            code == 6 and self.setting.wrapper
        ):  # 6: a delegate's answer is none
            self.find(strike, f"answered {code}: {text.strip()[:300]}")

    def expect(self, strike: Strike, verb: str, name: str) -> None:
        """A plain command serves, whatever happened to the one before."""
        done = self.serve(verb, name)
        if done["status"] != 0:
            self.find(strike, f"then {verb} of {name}: {done['stdout'].strip()[:300]}")

    def count(self, code: int) -> None:
        self.answers[code] = self.answers.get(code, 0) + 1

    def find(self, strike: Strike, what: str) -> None:
        self.findings.append(f"{strike}: {what}")

    def clean(self) -> None:
        """As at first, so that one finding is told once."""
        for verb, name in (("DEL", "c1"), ("DEL", "c2"), ("DEL", "c3"), ("DEL", "c0"), ("ADD", "c0")):
            self.serve(verb, name)
        self.before = self.wanted = self.stage.state()


def is_in(pid: int, call: str) -> bool:
    """Whether a process waits in this system call."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()[0] == str(ptrace.NUMBERS[call])
    return False


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
