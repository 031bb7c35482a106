"""SQLite's C module, for 1 ms: not `sqlite3`, which loads `datetime` and more for conversions that nobody here uses.

Of `functools`, which brings `collections` along (3 ms), it wants `lru_cache` alone, for its statements; unless that is
loaded already, it is given one that does the same.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _lru_cache(maxsize: int) -> Callable[[Callable[..., object]], object]:
    """As functools.lru_cache: the same wrapper, in C, less the names in its statistics."""
    from _functools import _lru_cache_wrapper  # type: ignore[import-not-found]

    return lambda call: _lru_cache_wrapper(call, maxsize, False, tuple)


if "functools" in sys.modules:
    import _sqlite3
else:
    stand_in = type(sys)("functools")
    stand_in.lru_cache = _lru_cache  # type: ignore[attr-defined]
    sys.modules["functools"] = stand_in
    try:
        import _sqlite3
    finally:
        del sys.modules["functools"]

sqlite = _sqlite3
