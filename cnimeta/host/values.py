"""What the Protocols of single modules speak in: how a program ended, and errors that callers tell apart. Pure."""

from __future__ import annotations

from cnimeta.errors import IoFailure, shown
from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.fields import Fields
    from cnimeta.spec.jsonio import JSON


class Completed(NamedTuple):
    """How a program ended: its exit status (128 + n for signal n), its stdout, and its stderr where that is kept."""

    status: int
    stdout: bytes
    stderr: bytes = b""

    @property
    def complaint(self) -> str:
        """What stderr says as one printable line, for a message."""
        text = " ".join(self.stderr.decode("utf-8", "replace").split())
        return shown(text, 400)[1:-1] if text else f"exit status {self.status}"


class NoNamespace(IoFailure):
    """A path leads to no network namespace: there is nothing there, or something else."""


class PodApiError(Exception):
    """A request failed. `status` is the HTTP status, 0 when there was no answer; `reason` is the Status object's.

    `retry_after_s` is what the server asked for, 0 when it did not.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float = 0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    def encoded(self) -> dict[str, JSON]:
        """As an object, for another process."""
        return {
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "retryAfterSeconds": self.retry_after_s,
        }

    @classmethod
    def decoded(cls, fields: Fields) -> PodApiError:
        """What `encoded` gave."""
        status, wait_s = fields.integer("status", 0, 999) or 0, float(str(fields.get("retryAfterSeconds") or 0))
        return cls(status, fields.text("reason"), fields.text("message"), wait_s)

    def __str__(self) -> str:
        return f"HTTP {self.status} {self.reason}: {self.message}" if self.status else self.message
