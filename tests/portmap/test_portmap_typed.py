"""Records whose checksum is right and whose values are of other types: read as damaged, and removed by DEL all the same."""

from __future__ import annotations

import copy
import json
import os
import random
from binascii import crc32
from typing import TYPE_CHECKING, Any

import pytest
from portmap_kit import OBSERVERS, Host, conf, tcp

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

SAMPLE = 80
OTHERS = (None, True, 0, -1, 5, 2**70, 0.5, "", "x", "\ud800", [], [None], [[]], {}, {"x": 1})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a document."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def value_at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def replaced(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> bytes:
    changed = copy.deepcopy(document)
    holder = changed["record"]
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    body = json.dumps([changed["version"], changed["record"]], separators=(",", ":"), ensure_ascii=False)
    changed["crc"] = crc32(body.encode("utf-8", "surrogatepass"))
    return json.dumps(changed, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("backend", OBSERVERS)
def test_del_serves_when_any_value_of_a_record_is_of_another_type(backend: str) -> None:
    host = Host()
    given = conf(tcp(8080), tcp(9000, 90, hostIP="192.0.2.1"), backend=backend, snat=True)
    host.call("ADD", given)
    path, data = next((path, data) for path, data in host.files.content.items() if path.endswith(".json"))
    document = json.loads(data)
    host.call("DEL", given)
    record = document["record"]
    cases = [
        (place, other)
        for place in places(record)
        for other in OTHERS
        if type(other) is not type(value_at(record, place))
    ]
    assert len(cases) > 300
    for place, other in cases if os.environ.get("CNIMETA_EVERY") else random.Random(backend).sample(cases, SAMPLE):
        host.call("ADD", given)
        host.files.content[path] = replaced(document, place, other)
        host.call("DEL", given)
        assert OBSERVERS[backend](host) == set(), (place, other)
        assert path not in host.files.content, (place, other)
