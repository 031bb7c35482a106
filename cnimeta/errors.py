"""Every error a plugin can answer with, by CNI error code.

The spec (https://www.cni.dev/docs/spec/#error) reserves 1-99; 100 and above belong to the plugins and are
listed here in one table so that no two meanings share a number. Messages name the object, the key and the
value; values of foreign origin go through `shown()` so that they can never break a log line.
"""

from __future__ import annotations

from _codecs import unicode_escape_encode  # `encode` would import the codec, which can fail while an error is told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


_TEXT_MAX = 4096
"""Characters of an error's message, and of its details."""


def shown(value: object, limit: int = 120) -> str:
    """A short, printable, one-line form of an untrusted value, for messages."""
    if isinstance(value, str) and len(value) >= limit:
        text = f'"{value[:limit]}'  # a megabyte is not escaped to be cut off
    else:
        text = f'"{value}"' if isinstance(value, str) else repr(value)
    text = unicode_escape_encode(text, "backslashreplace")[0].decode("ascii")
    return text if len(text) <= limit else text[: limit - 3] + "..."


def legible(text: str, limit: int = 2000) -> str:
    """Somebody else's words for a message: shortened, and with nothing that a terminal or a log would act on.

    Unlike `shown` it adds no quotes and leaves letters of every language as they are.
    """
    if len(text) > limit:
        text = f"{text[: limit - 3]}..."
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in text
    )


def counted(number: int, noun: str) -> str:
    """`1 port`, `2 ports`, for messages."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class CniError(Exception):
    """An error in the spec's form: a numeric code, a short message and optional details."""

    code = 999

    def __init__(self, msg: str, details: str = "", *, code: int | None = None) -> None:
        msg = legible(msg, _TEXT_MAX)  # whoever's words are in it
        super().__init__(msg)
        self.msg = msg
        self.details = details
        if code is not None:
            self.code = code

    def as_json(self, cni_version: str) -> dict[str, str | int]:
        """The object a plugin prints on stdout; `details` only when there are any."""
        body: dict[str, str | int] = {"cniVersion": cni_version, "code": self.code, "msg": self.msg}
        if self.details:
            body["details"] = legible(self.details, _TEXT_MAX)
        return body

    def __str__(self) -> str:
        return f"{self.msg} ({legible(self.details, _TEXT_MAX)})" if self.details else self.msg


class IncompatibleVersion(CniError):
    """The configuration's cniVersion, or a verb it does not have, is not supported."""

    code = 1


class UnsupportedField(CniError):
    """A configuration key is understood but its value is not supported; the message names both."""

    code = 2


class UnknownContainer(CniError):
    """The container does not exist; a runtime need not clean up after this error."""

    code = 3


class InvalidEnvironment(CniError):
    """A CNI_* environment variable is missing or invalid; on the command line, an option: wrong usage (status 2)."""

    code = 4


class IoFailure(CniError):
    """The host refused an operation: a file, a socket, a program, the kernel."""

    code = 5


class DecodingFailure(CniError):
    """A document is not JSON, or not of the shape the spec gives it."""

    code = 6


class InvalidNetworkConfig(CniError):
    """A key of the network configuration has an invalid value."""

    code = 7


class InvalidNetns(CniError):
    """CNI_NETNS is the plugin's own network namespace (the code libcni's skel uses)."""

    code = 8


class TryAgainLater(CniError):
    """A passing condition: a lock that could not be acquired in time, a range with no free port."""

    code = 11


class PluginNotAvailable(CniError):
    """STATUS: ADD would fail."""

    code = 50


class LimitedConnectivity(CniError):
    """STATUS: ADD works, but existing containers may have limited connectivity."""

    code = 51


class InternalError(CniError):
    """A defect in the plugin itself."""

    code = 999


# Codes 100 and above: this project's own.


class HostPortConflict(CniError):
    """A host port is already mapped for another container; the message names it."""

    code = 100


class CheckFailed(CniError):
    """CHECK: something ADD made is missing or not what it should be."""

    code = 101


class AnnotationFailed(CniError):
    """The Pod could not be annotated in time and the policy requires it."""

    code = 102


class PodMismatch(CniError):
    """The Pod is gone or was replaced by another of the same name while ADD ran."""

    code = 103


class StateUnusable(CniError):
    """The state directory cannot be read or written."""

    code = 104


class DelegateFailed(CniError):
    """A delegate could not be found or run, or its answer could not be understood."""

    code = 105


class HookFailed(CniError):
    """The hook of `notify` did not take the event of an ADD in time, and the policy requires it."""

    code = 106


def joined(errors: Iterable[CniError]) -> CniError | None:
    """One error for many: the first one's code, every message once. None for none."""
    found = list(errors)
    if len(found) < 2:
        return found[0] if found else None
    return CniError("; ".join(dict.fromkeys(str(error) for error in found)), code=found[0].code)


class Failures:
    """The failures of steps that are all tried, whatever became of those before: what DEL and GC are made of.

    ::

        failures = Failures()
        for step in steps:
            with failures:
                step()
        failures.raise_any()

    Only a CniError is kept; anything else goes through.
    """

    def __init__(self) -> None:
        self.found: list[CniError] = []

    def __enter__(self) -> None:
        """Begin a step."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if isinstance(error, CniError):
            self.found.append(error)
            return True
        return False

    def __bool__(self) -> bool:
        """Whether any step failed."""
        return bool(self.found)

    def raise_any(self) -> None:
        """Raise one error for all that failed, if any did."""
        failure = joined(self.found)
        if failure is not None:
            raise failure from None
