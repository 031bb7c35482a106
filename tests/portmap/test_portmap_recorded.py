"""What a real kubelet and containerd sent to portmap, replayed on a fake netfilter, in both spellings of every key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from portmap_kit import Host

from cnimeta.testing import call

pytestmark = pytest.mark.unit

(RECORDED,) = (Path(__file__).parents[1] / "data").glob("*.jsonl")
CALLS = [found for line in RECORDED.read_text().splitlines() if (found := json.loads(line))["plugin"] == "portmap"]


def lowered(value: Any) -> Any:
    """Every key with a small first letter, as the documents write it."""
    if isinstance(value, dict):
        return {key[:1].lower() + key[1:]: lowered(item) for key, item in value.items()}
    return [lowered(item) for item in value] if isinstance(value, list) else value


def replay(spell: Any) -> list[list[str]]:
    """The mappings after each call."""
    host, seen = Host(), []
    for recorded in CALLS:
        environ = recorded["env"]
        call(
            host.plugin(),
            environ["CNI_COMMAND"],
            spell(recorded["stdin"]),
            container_id=environ["CNI_CONTAINERID"],
            ifname=environ["CNI_IFNAME"],
            netns=environ["CNI_NETNS"] or "/run/netns/any",
            args=environ["CNI_ARGS"],
        )
        seen.append([line for line in host.dump() if line.startswith(("any", "host"))])
    return seen


def test_every_call_succeeds_and_nothing_is_left_when_replayed() -> None:
    seen = replay(lambda stdin: stdin)
    after_add = [lines for lines, found in zip(seen, CALLS, strict=True) if found["env"]["CNI_COMMAND"] == "ADD"]
    assert len(after_add) >= 2
    assert all(any(" tcp . 8080 " in line or "tcp . 8080 :" in line for line in lines) for lines in after_add)
    assert seen[-1] == []


def test_both_spellings_do_the_same_when_replayed() -> None:
    assert replay(lowered) == replay(lambda stdin: stdin)
