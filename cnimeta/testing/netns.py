"""Network namespaces for kernel tests: made, entered and removed; never the machine's own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000


class Namespace:
    """A named network namespace with its loopback up."""

    def __init__(self, label: str = "ns") -> None:
        self.name = f"cnimeta-{label}-{secrets.token_hex(3)}"
        self.path = f"/run/netns/{self.name}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program inside and collect its output."""
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *command], check=check, input=stdin, capture_output=True, text=True
        )

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a program inside; the caller ends it."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread's code run inside, for adapters under test."""
        libc = ctypes.CDLL(None, use_errno=True)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(there, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns", self.path)
            try:
                yield
            finally:
                if libc.setns(home, _CLONE_NEWNET) != 0:
                    os._exit(70)  # staying in a test's namespace would be worse than ending
        finally:
            os.close(there)
            os.close(home)

    def veth(self, name: str, other: Namespace, other_name: str) -> None:
        """Join two namespaces with a veth pair, both ends up."""
        self.run("ip", "link", "add", name, "type", "veth", "peer", "name", other_name, "netns", other.name)
        self.run("ip", "link", "set", name, "up")
        other.run("ip", "link", "set", other_name, "up")

    def close(self) -> None:
        """Remove the namespace and all in it."""
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


@contextlib.contextmanager
def namespaces(*labels: str) -> Iterator[tuple[Namespace, ...]]:
    """Several namespaces, removed at the end whatever happens."""
    made: list[Namespace] = []
    try:
        for label in labels:
            made.append(Namespace(label))
        yield tuple(made)
    finally:
        for namespace in made:
            namespace.close()
