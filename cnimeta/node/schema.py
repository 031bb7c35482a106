"""JSON Schema (2020-12) of network configurations, made from what plugins tell of their keys: for editors. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cnimeta.node.explained import KEYS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cnimeta.plugin.base import Plugin
    from cnimeta.plugin.described import Key

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ANY = "NAME"
"""The part of a key's path that stands for any name."""
_ENTRY = "plugins[]."


def of_plugin(name: str, plugin: Plugin) -> dict[str, Any]:
    """One plugin's configuration, as a file of its own or an entry of a list."""
    head = {"$schema": DIALECT, "title": f"CNI configuration of {name}"}
    return {**head, **_object([*_of_entries(), *plugin.describe()]), "required": ["type"]}


def of_lists(plugins: Mapping[str, Plugin]) -> dict[str, Any]:
    """A .conflist. What its entries have besides the common keys is judged for the plugins that are known."""
    body = _object([key for key in KEYS if not key.names[0].startswith(_ENTRY)])
    known = [
        {"if": {"properties": {"type": {"const": name}}}, "then": _object(list(plugin.describe()))}
        for name, plugin in plugins.items()
    ]
    body["properties"]["plugins"]["items"] = {**_object(_of_entries()), "required": ["type"], "allOf": known}
    return {"$schema": DIALECT, "title": "CNI network configuration list", **body, "required": ["name", "plugins"]}


def _of_entries() -> list[Key]:
    """The keys that every entry of a list may have, by their names there."""
    return [
        key._replace(names=tuple(path.removeprefix(_ENTRY) for path in key.names))
        for key in KEYS
        if key.names[0].startswith(_ENTRY)
    ]


def _object(keys: Iterable[Key]) -> dict[str, Any]:
    root: dict[str, Any] = {"type": "object"}
    for key in keys:
        for path in key.names if key.schema else ():
            _place(root, path.split("."), {**key.schema, "description": f"{key.about}. Default: {key.default}"})
    return root


def _place(root: dict[str, Any], path: list[str], schema: dict[str, Any]) -> None:
    """Put a key's schema where its path leads: `a.b`, `a[].b`, `a.NAME.b`."""
    here = root
    for part in path[:-1]:
        name, listed = part.removesuffix("[]"), part.endswith("[]")
        here = _child(here, name)
        if listed:
            here = _variant(here, "array").setdefault("items", {"type": "object"})
        here = _variant(here, "object")
    _child(here, path[-1]).update(schema)


def _child(here: dict[str, Any], name: str) -> dict[str, Any]:
    if name == ANY:
        found: dict[str, Any] = here.setdefault("additionalProperties", {})
    else:
        found = here.setdefault("properties", {}).setdefault(name, {})
    return found


def _variant(here: dict[str, Any], kind: str) -> dict[str, Any]:
    """Of a value that may have several forms, the object (or array) among them."""
    for one in here.get("anyOf", ()):
        if one.get("type") == kind:
            found: dict[str, Any] = one
            return found
    if "anyOf" not in here:
        here.setdefault("type", kind)
    return here
