"""Keys of a configuration that nobody reads, and the known ones they may be meant for. Pure.

CNI passes unknown keys on, so that none is an error: a misspelt one is only without effect, and nobody hears of it.
"""

from __future__ import annotations

from cnimeta.errors import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from cnimeta.spec.fields import Fields

OF_LISTS = ("cniVersion", "cniVersions", "name", "plugins", "disableCheck", "disableGC", "loadOnlyInlinedPlugins")
"""The keys of a network configuration list (spec section 1)."""
OF_EVERY_PLUGIN = (
    *OF_LISTS,
    *("type", "capabilities", "args", "ipMasq", "ipam", "dns", "runtimeConfig", "prevResult"),
    *("cni.dev/valid-attachments", "cni.dev/attachments"),
)
"""The keys that a plugin's configuration may have whatever the plugin, one that is a network by itself included."""


def strangers(fields: Fields, known: Collection[str]) -> list[str]:
    """A line for each key that is none of `known` in any spelling; it names the nearest of them."""
    small = {key.lower(): key for key in known}
    return [_told(fields, key, small) for key in fields.raw if key.lower() not in small]


def without_effect(fields: Fields, key: str, why: str) -> list[str]:
    """A line for a key that is there and decides nothing, none when it is not there."""
    return [f"{fields.at(key)} has no effect: {why}"] if fields.has(key) else []


def _told(fields: Fields, key: str, small: dict[str, str]) -> str:
    from difflib import get_close_matches  # costs 10 ms, and there is something to say

    near = get_close_matches(key.lower()[:64], small, 1)
    hint = f": did you mean {small[near[0]]}?" if near else ""
    return f"{fields.path} has a key {shown(key)} that nothing reads{hint}"
