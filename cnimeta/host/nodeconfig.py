"""The node-wide configuration, `/etc/cnimeta/config.toml` (or the file that CNIMETA_CONFIG names).

    [portmap]
    backend = "iptables"
    dataDir = "/var/lib/cni/cnimeta"

A missing file costs one system call: `tomllib` is imported only when there is something to read.
"""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig, IoFailure, shown
from cnimeta.host.reading import read_plain
from cnimeta.spec.fields import Fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_BYTES = 1 << 20
DEFAULT_PATH = "/etc/cnimeta/config.toml"
VARIABLE = "CNIMETA_CONFIG"


def read_section(name: str, environ: Mapping[str, str]) -> Fields:
    """One section, empty when it or the file is missing. Raises as `read_document`."""
    document = read_document(environ)
    section = document.raw.get(name, {})
    if not isinstance(section, dict):
        raise InvalidNetworkConfig(f"{document.path}: {name} must be a table")
    return Fields(section, f"{document.path}: {name}")


def read_document(environ: Mapping[str, str]) -> Fields:
    """All of it, empty when the file is missing.

    Raises IoFailure (5) when the file cannot be read, InvalidNetworkConfig (7) when it is not TOML.
    """
    path = environ.get(VARIABLE) or DEFAULT_PATH
    try:
        data = read_plain(path, _MAX_BYTES)
    except FileNotFoundError:
        return Fields({}, path)
    except (OSError, ValueError) as error:
        raise IoFailure(f"cannot read {shown(path)}: {getattr(error, 'strerror', None) or error}") from None
    import tomllib

    try:
        return Fields(tomllib.loads(data.decode("utf-8")), path)
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise InvalidNetworkConfig(f"{path} is not valid TOML: {error}") from None
