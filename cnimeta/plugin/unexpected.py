"""What a plugin answers when something was raised that it did not translate. Loaded only then.

A defect in the plugin is 999. What the host did to it is not: no memory, no descriptors, a file of the installation
that cannot be read, or that is being replaced while it is loaded. The exception's own words are told by the traceback
alone (CNIMETA_DEBUG): nobody knows what a foreign package puts in.
"""

from __future__ import annotations

import errno
import os
import sys
import time

from cnimeta.errors import CniError, InternalError, IoFailure, TryAgainLater, shown

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.EINTR)


def failure_of(what: str, error: BaseException) -> CniError:
    """The answer to an exception of any kind. `what` names the plugin and the verb."""
    if isinstance(error, MemoryError):
        return TryAgainLater(f"{what} failed: out of memory", _origin(error))
    if isinstance(error, OSError):
        where = f"{shown(error.filename)}: " if error.filename else ""
        kind = TryAgainLater if error.errno in _PASSING else IoFailure
        return kind(f"{what} failed: {where}{error.strerror or type(error).__name__}", _origin(error))
    said = type(error).__name__
    if _was_replaced():
        return TryAgainLater(f"{what} failed while its installation was being replaced: {said}", _origin(error))
    if isinstance(error, ImportError | SyntaxError | EOFError) or _is_without_codec(error):
        of = shown(getattr(error, "name", None) or getattr(error, "filename", None) or "a module")
        hint = f"its installation is not whole: {said} of {of}: install it again"
        return IoFailure(f"{what} failed: {hint}", _origin(error))
    return InternalError(f"internal error in {what}: {said}", _origin(error))


def _is_without_codec(error: BaseException) -> bool:
    """Whether a codec could not be imported, which Python tells as if there was none of its name."""
    return isinstance(error, LookupError) and str(error).startswith("unknown encoding: ")


def _was_replaced() -> bool:
    """Whether a file that a module of this process came from has changed since the process began, or is gone."""
    paths = {getattr(module, "__file__", None) for module in tuple(sys.modules.values())}
    try:
        with open("/proc/self/stat", "rb", buffering=0) as file:
            ticks = int(file.read().rpartition(b") ")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        began = time.time() - age_s
        return any(os.stat(path).st_ctime > began for path in paths if path)
    except FileNotFoundError:
        return True
    except OSError:  # unknown: the failure is told as if it was not
        return False


def _origin(error: BaseException) -> str:
    """Where it arose: the innermost `module:line`, enough for a report, no traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
