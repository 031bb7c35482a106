"""What a plugin tells people of the keys it reads: `cnimeta explain` shows it. Pure, and never on the way of a verb."""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.spec.jsonio import JSON


class Key(NamedTuple):
    """One key of a configuration, or several that are told of together."""

    names: tuple[str, ...]
    """Where it stands: `ranges`, `kubernetes.policy`, `runtimeConfig.portMappings[].hostPort`."""
    form: str
    """The values it takes, with their unit."""
    default: str
    about: str
    schema: Mapping[str, JSON] = {}
    """The values as JSON Schema (2020-12), for editors; empty where the key above says them, or in none."""

    def is_called(self, word: str) -> bool:
        """Whether the word is one of its names, whole or the last part of one, in any case."""
        small = word.lower()
        return any(small in (name.lower(), name.rpartition(".")[2].lower()) for name in self.names)
