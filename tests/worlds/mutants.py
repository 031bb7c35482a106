"""Fixes taken out again, one at a time, to see that worlds find the fault: on its own world, and in generated ones.

This is the one place where our own code is replaced: `run.py --without FAULT` asks whether the generator would have
found it, and `test_mutants.py` whether the world in found.py still does.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING, Any

import laws

from cnimeta.host.conntrack import KernelConntrack
from cnimeta_plugins.portmap.config import PortMapping
from cnimeta_plugins.portmap.iptables import plan as iptables_plan
from cnimeta_plugins.portmap.localhost import Localhost
from cnimeta_plugins.portmap.mapper import Mapper
from cnimeta_plugins.portmap.nftables import backend as nft_backend
from cnimeta_plugins.portmap.nftables import base as nft_base
from cnimeta_plugins.portmap.nftables import meaning as nft_meaning
from cnimeta_plugins.portmap.nftables.backend import NftBackend
from cnimeta_plugins.portmap.others import Others

if TYPE_CHECKING:
    from collections.abc import Iterator


def _nothing(*_: object, **__: object) -> None:
    """No step at all."""


def _refused(*_: object) -> None:
    raise  # noqa: PLE0704 - as of the handler that calls it


def _forget_by_port(_self: object, _family: int, ports: Any, _translated_to: object) -> None:
    for first, last, _ in ports:
        for port in range(first, last + 1):
            subprocess.run(["conntrack", "-D", "-p", "udp", "--dport", str(port)], capture_output=True, check=False)


_BASE_RULES, _OWN_BASE, _INTERFACE, _SERVES = (
    nft_base.base_rules,
    iptables_plan._own_base,
    Localhost.interface,
    PortMapping.serves,
)

MUTANTS: dict[str, tuple[object, str, object]] = {
    "1-single": (nft_meaning, "meaning", str),
    "2": (Mapper, "_share", _refused),
    "3": (Mapper, "_undo", _nothing),
    "4": (Localhost, "close", _nothing),
    "4-guard": (nft_base, "base_rules", lambda: [rule for rule in _BASE_RULES() if rule.chain != "guard"]),
    "4-guard-iptables": (iptables_plan, "_own_base", lambda family: _OWN_BASE(family) if family == 6 else []),
    "8": (nft_backend, "healing_changes", lambda _: []),
    "10": (Others, "is_dead", lambda *_: True),
    "20": (PortMapping, "serves", lambda one, family: one.is_wildcard or _SERVES(one, family)),
    "21": (Localhost, "interface", lambda one, plan: "" if plan.settings.masq_all else _INTERFACE(one, plan)),
    "22": (KernelConntrack, "forget_udp", _forget_by_port),
    "25": (Localhost, "check", _nothing),
    "27": (nft_backend, "idle_chains", lambda *_: []),
    "new-claims": (nft_backend, "orphan_changes", lambda *_: []),
    "new-shared": (NftBackend, "_drop_shared", _nothing),
}
"""By the fault's number in found.py: the holder of the fix, its name there, and what stands in its place."""


@contextlib.contextmanager
def without(fault: str) -> Iterator[None]:
    """For a block, the code without one fix. What runs is a fork of this process, so it has none either."""
    holder, name, other = MUTANTS[fault]
    original = getattr(holder, name)
    laws.base.cache_clear()
    setattr(holder, name, other)
    try:
        yield
    finally:
        setattr(holder, name, original)
        laws.base.cache_clear()
