"""The plugin under test and the place it runs in: two throw-away network namespaces joined by a veth pair.

The plugin runs in the one that stands for the host, with mounts of its own over what plugins keep on a node, so nothing
it does touches the machine's. Needs root, `ip` (iproute2), `unshare` and `nsenter` (util-linux); it does not matter
what language the plugin is written in.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING

from cnimeta.errors import DecodingFailure, IoFailure
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.convert import render_result
from cnimeta.spec.jsonio import dumps, loads_all
from cnimeta.spec.result import Interface, IPConfig, Result, Route
from cnimeta.testing.conformance.place import STATE, private_mounts
from cnimeta.testing.conformance.process import CASE_S, Hung, run_limited
from cnimeta.testing.netns import namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from cnimeta.spec.jsonio import JSON

CONTAINER = "conformance1"
IFNAME = "eth0"
HOST_IFNAME = "vethconf0"
_LOOKING = (
    ("ip", "-details", "link"),
    ("ip", "-br", "address"),
    ("ip", "rule"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("tc", "qdisc"),
    ("nft", "list", "ruleset"),
    ("iptables-save", "-t", "nat"),
    ("sysctl", "-a", "-r", "^net"),
)
"""What shows a namespace as plugins change it. A program that is not there shows nothing."""


def _settled(line: str) -> Iterator[str]:
    """The words of a line without what the kernel still does by itself: carrier, and addresses of a new link's own."""
    words = iter(line.split())
    for word in words:
        if word == "state":
            next(words, None)
        elif word not in ("UP", "UNKNOWN", "DOWN", "LOWERLAYERDOWN") and not word.startswith(("fe80::", "<")):
            yield word


class Ran(NamedTuple):
    """How one call ended. `documents` is None when stdout is not a sequence of JSON documents."""

    status: int
    stdout: str
    stderr: str
    documents: list[JSON] | None

    @property
    def code(self) -> int | None:
        """The error code, when stdout is exactly one error object."""
        if self.status == 0 or self.documents is None or len(self.documents) != 1:
            return None
        body = self.documents[0]
        code = body.get("code") if isinstance(body, dict) else None
        return code if isinstance(code, int) else None

    def __str__(self) -> str:
        said, logged = " ".join(self.stdout.split()), self.stderr.strip()
        return f"exit status {self.status}, stdout {said[:160] or 'empty'}" + (
            f"\nstderr: {logged[-600:]}" if logged else ""
        )


class Subject:
    """One plugin executable with one configuration. `chained` decides whether it is given a prevResult."""

    def __init__(
        self,
        path: str,
        conf: Mapping[str, JSON],
        *,
        host: str,
        netns: str,
        chained: bool,
        renew: Callable[[], None] = lambda: None,
        timeout_s: float = CASE_S,
        places: Collection[str] = (),
        folders: Sequence[str] = (),
        mounts: int = 0,
    ) -> None:
        self._mounts = mounts
        self.path = os.path.abspath(path)
        self.folders = folders or (os.path.dirname(self.path),)
        """CNI_PATH."""
        self.conf = conf
        self.host = host
        self.netns = netns
        self.chained = chained
        self.renew = renew
        """Replaces the veth pair, as the interface plugin's DEL and the next ADD do between two attachments."""
        self.timeout_s = timeout_s
        self.places = places
        """The namespaces that were made for it alone: what runs there is killed when a call hangs."""
        self.begin()

    def begin(self) -> None:
        """Begin a case: from now on its calls have `timeout_s`, all together."""
        self._ends = time.monotonic() + self.timeout_s

    def call(
        self,
        verb: str | None,
        stdin: str | Mapping[str, JSON],
        *,
        change: Mapping[str, str | None] | None = None,
    ) -> Ran:
        """Run the plugin in the host's namespace. `change` sets variables of the environment, None removes one.

        Raises Hung (cnimeta.testing.conformance.process) when the case's time is up.
        """
        environ: dict[str, str | None] = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
        environ |= {"CNI_COMMAND": verb, "CNI_PATH": ":".join(self.folders)}
        if verb in ("ADD", "DEL", "CHECK"):
            environ |= {"CNI_CONTAINERID": CONTAINER, "CNI_IFNAME": IFNAME, "CNI_NETNS": self.netns}
        environ |= change or {}
        text = stdin if isinstance(stdin, str) else dumps(stdin)
        done = run_limited(
            [*self._inside(), "ip", "netns", "exec", self.host, self.path],
            {name: value for name, value in environ.items() if value is not None},
            text.encode(),
            self._ends - time.monotonic(),
            self.places,
        )
        stdout = done.stdout.decode("utf-8", "replace")
        try:
            documents: list[JSON] | None = loads_all(done.stdout)
        except DecodingFailure:
            documents = None
        return Ran(done.returncode, stdout, done.stderr.decode("utf-8", "replace"), documents)

    def require_start(self) -> None:
        """Raise IoFailure (code 5) for a file that no program is in, or whose interpreter is missing."""
        try:
            said = self.call("VERSION", {"cniVersion": "1.0.0"}).stderr
        except Hung:
            return  # the rules will tell
        if said.startswith("exec of "):  # ip's own words
            raise IoFailure(f"{self.path} cannot be started: {said.strip().rpartition(': ')[2]}")

    def _inside(self) -> tuple[str, ...]:
        """What runs a program where the subject's mounts are."""
        return ("nsenter", f"--mount=/proc/{self._mounts}/ns/mnt") if self._mounts else ()

    def footprint(self) -> str:
        """All that a plugin may have changed, as text: links, addresses, routes, queues, rules, settings, files."""
        namespaces = (self.host, os.path.basename(self.netns))
        seen = [self._output("ip", "netns", "exec", name, *command) for name in namespaces for command in _LOOKING]
        lines = (line for text in seen for line in text.splitlines())
        own = ("ff00::", "proto kernel")  # what comes and goes with addresses
        settled = [" ".join(_settled(line)) for line in lines if not any(word in line for word in own)]
        return "\n".join([self.files(), *settled])

    def files(self) -> str:
        """The files that it keeps: their paths and sizes."""
        folders = [*STATE, *(value for value in (self.conf.get("dataDir"),) if isinstance(value, str))]
        return self._output("find", *folders, "-type", "f", "-printf", "%p %s\\n")

    def _output(self, *command: str) -> str:
        done = subprocess.run([*self._inside(), *command], check=False, capture_output=True, text=True)
        return done.stdout

    def conf_for(self, version: str, **more: JSON) -> dict[str, JSON]:
        """The configuration in `version`, with a prevResult of that version for a chained plugin."""
        body: dict[str, JSON] = {"name": "conformance", **self.conf, "cniVersion": version, **more}
        if self.chained and "prevResult" not in more:
            body["prevResult"] = render_result(self.prev_result(), version)
        return {key: value for key, value in body.items() if value is not None}

    def prev_result(self) -> Result:
        """What the interface plugin before it would have answered."""
        return Result(
            (Interface(HOST_IFNAME, "02:00:00:00:00:01"), Interface(IFNAME, "02:00:00:00:00:02", sandbox=self.netns)),
            (IPConfig("10.99.0.2/24", "10.99.0.1", 1),),
            (Route("0.0.0.0/0", "10.99.0.1"),),
        )


def require_executable(path: str) -> None:
    """Raise IoFailure (code 5) for a path that no program can be started from."""
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        raise IoFailure(f"{path} is {'not an executable' if os.path.lexists(path) else 'missing'}: nothing to test")


@contextlib.contextmanager
def sandbox(
    path: str,
    conf: Mapping[str, JSON],
    *,
    netns: str = "",
    chained: bool = True,
    timeout_s: float = CASE_S,
    folders: Sequence[str] = (),
) -> Iterator[Subject]:
    """A subject in fresh namespaces; `netns` takes a container's namespace of your own instead of the made one.

    `folders` are CNI_PATH; its own folder when there are none.

    Raises IoFailure (code 5) when there is no such executable.
    """
    require_executable(path)
    with namespaces("host", "pod") as (host, pod), private_mounts() as mounts:

        def renew() -> None:
            if not chained or netns:
                return
            host.run("ip", "link", "del", HOST_IFNAME, check=False)
            host.veth(HOST_IFNAME, pod, IFNAME)
            host.run("ip", "addr", "add", "10.99.0.1/24", "dev", HOST_IFNAME)
            pod.run("ip", "addr", "add", "10.99.0.2/24", "dev", IFNAME)

        renew()
        subject = Subject(
            path,
            conf,
            host=host.name,
            netns=netns or pod.path,
            chained=chained,
            renew=renew,
            timeout_s=timeout_s,
            places=(host.path, pod.path),
            folders=folders,
            mounts=mounts,
        )
        subject.require_start()
        yield subject
