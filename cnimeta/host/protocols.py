"""Every way this project touches the host, as Protocols. Adapters lie beside this file, fakes in `cnimeta.testing`.

Imported for type checking only: adapters and fakes match by structure, so nothing here is loaded at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.delegate.spawn import Completed
    from cnimeta.spec.jsonio import JSON


class PluginExec(Protocol):
    """Runs plugin executables."""

    def run(self, path: str, environ: Mapping[str, str], stdin: bytes) -> Completed:
        """Run `path` to its end; DelegateFailed (code 105) when it cannot be started."""
        ...


class Clock(Protocol):
    """Time, for everything that expires."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def boottime(self) -> float:
        """Seconds since boot, suspend included; never steps."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class Files(Protocol):
    """Durable, atomic files; failures are OSError."""

    def read(self, path: str) -> bytes | None:
        """The content, or None when there is no such file."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Replace atomically and durably; makes the folder."""
        ...

    def remove(self, path: str) -> None:
        """Remove durably; missing is fine."""
        ...

    def names(self, folder: str) -> list[str]:
        """The files of a folder, sorted."""
        ...


class PodApi(Protocol):
    """The two requests made of a Kubernetes API server; failures are cnimeta.host.kube.PodApiError."""

    def patch_status(self, namespace: str, name: str, patch: Mapping[str, JSON], timeout_s: float) -> None:
        """Merge-patch the Pod through its status sub-resource."""
        ...

    def read(self, namespace: str, name: str, timeout_s: float) -> dict[str, JSON]:
        """The Pod."""
        ...


class NodeAddresses(Protocol):
    """The addresses under which the node is reached."""

    def primary(self) -> tuple[str, ...]:
        """At most one address per family, IPv4 first."""
        ...
