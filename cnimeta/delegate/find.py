"""Finding a plugin executable in CNI_PATH (spec §4; the reference's invoke.FindInPath)."""

from __future__ import annotations

import os
import stat

from cnimeta.errors import DelegateFailed, IoFailure, shown
from cnimeta.host.reading import NOT_HERE
from cnimeta.spec.validate import plugin_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DEFAULT_BIN_DIR = "/opt/cni/bin"
"""Where container runtimes look for plugins."""


def split_path(texts: Iterable[str]) -> tuple[str, ...]:
    """The folders of CNI_PATH, and of `--bin-dir` given once or often: in order, those in one text divided by `:`."""
    return tuple(folder for text in texts for folder in text.split(":") if folder)


def find(name: str, folders: Sequence[str]) -> str:
    """The first regular file `name` (links followed) in `folders`.

    Raises InvalidNetworkConfig (code 7) for a name that is not a file name, DelegateFailed (code 105) when
    there is none, IoFailure (code 5) when that cannot be told.
    """
    plugin_type(name)
    for folder in folders:
        path = os.path.join(folder, name)
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                return path
        except OSError as error:
            if error.errno not in NOT_HERE:
                raise IoFailure(f"cannot look for plugin {shown(path)}: {error.strerror or error}") from None
        except ValueError:  # a NUL byte in the folder's name
            continue
    raise DelegateFailed(f"failed to find plugin {shown(name)} in CNI_PATH {shown(':'.join(folders))}")
