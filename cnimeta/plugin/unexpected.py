"""What a plugin answers when something was raised that it did not translate. Loaded only then.

A defect in the plugin is 999. What the host did to it is not: no memory, no descriptors, a file of the installation that
cannot be read, or that is being replaced while it is loaded.
"""

from __future__ import annotations

import errno
import os
import sys
import time

from cnimeta.errors import CniError, InternalError, IoFailure, TryAgainLater, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEBUG = "CNIMETA_DEBUG"
"""The environment variable that, set to anything, has tracebacks written to stderr."""

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.EINTR)
_BEING_REPLACED_S = 60.0
"""An installation whose files changed so lately may still be changing."""


def failure_of(what: str, error: BaseException) -> CniError:
    """The answer to an exception of any kind. `what` names the plugin and the verb."""
    if isinstance(error, CniError):
        return error
    if isinstance(error, MemoryError):
        return TryAgainLater(f"{what} failed: out of memory", _origin(error))
    if isinstance(error, OSError):
        where = f"{shown(error.filename)}: " if error.filename else ""
        kind = TryAgainLater if error.errno in _PASSING else IoFailure
        return kind(f"{what} failed: {where}{error.strerror or shown(str(error))}", _origin(error))
    said = f"{type(error).__name__}: {shown(str(error))}"
    if _was_just_replaced():
        return TryAgainLater(f"{what} failed while its installation was being replaced: {said}", _origin(error))
    if isinstance(error, ImportError | SyntaxError | EOFError):
        return IoFailure(f"{what} failed: its installation is not whole: {said}; install it again", _origin(error))
    return InternalError(f"internal error in {what}: {said}", _origin(error))


def tell(error: BaseException, environ: Mapping[str, str]) -> None:
    """Write the traceback to stderr, if the environment asks for it."""
    if environ.get(DEBUG):
        import traceback

        traceback.print_exception(error)


def _was_just_replaced() -> bool:
    """Whether a file that a module of this process came from was changed in the last minute, or is gone."""
    since = time.time() - _BEING_REPLACED_S
    for module in tuple(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path and getattr(module, "__spec__", None) is not None:
            try:
                if os.stat(path).st_ctime > since:
                    return True
            except FileNotFoundError:
                return True
            except OSError:
                continue
    return False


def _origin(error: BaseException) -> str:
    """Where it arose: the innermost `module:line`, enough for a report, no traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
