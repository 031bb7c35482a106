"""Network namespaces for kernel tests: made, entered and removed; never the machine's own."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from typing import TYPE_CHECKING

from cnimeta.host.netns import entered

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


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

    def entered(self) -> AbstractContextManager[None]:
        """Let this thread's code run inside, for adapters under test."""
        return entered(self.path)

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
