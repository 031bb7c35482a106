"""Every metric of the node at this moment."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from cnimeta import __version__
from cnimeta.errors import CniError
from cnimeta.observe.metrics import Metric, Sample, gauge, merged
from cnimeta.observe.totals import zeros

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cnimeta.observe.totals import Totals
    from cnimeta.plugin.base import Plugin


def collected(
    plugins: Mapping[str, Plugin], net_dir: str, log: Callable[[str], None], totals: Totals | None = None
) -> tuple[list[Metric], bool]:
    """Every plugin's metrics, what was counted, and what is said of the collection; whether something failed.

    A plugin whose metrics cannot be read has none, not zeros, and `cnimeta_metrics_success` says so. `totals`: None
    when nothing is counted on this node.
    """
    found, success = [], []
    for name, plugin in plugins.items():
        try:
            metrics = list(plugin.metrics(net_dir))
        except CniError as error:
            log(f"no metrics of {name}: {error}")
            success.append(Sample(0, (("plugin", name),)))
        else:
            found += metrics
            success.append(Sample(1, (("plugin", name),)))
    if totals is not None:
        found += [*zeros(plugins), *totals.metrics(), *_agent(totals)]
    info = Sample(1, (("version", __version__),))
    return merged(
        [
            Metric("cnimeta_info", "The installed version", [info]),
            Metric("cnimeta_metrics_success", "1 when a plugin's metrics could be read", success),
            gauge("cnimeta_metrics_timestamp_seconds", "When they were read", round(time.time(), 3)),
            *found,
        ]
    ), any(sample.value == 0 for sample in success)


def _agent(totals: Totals) -> Iterator[Metric]:
    """Of the agent that was started last, if any was since the node was."""
    if not totals.agent:
        return
    alive = agent_is_alive(totals)
    yield gauge("cnimeta_agent_up", "1 when the agent that was started last is alive", alive)
    if alive:
        version = str(totals.agent.get("version", ""))
        yield Metric("cnimeta_agent_info", "The version that the agent runs", [Sample(1, (("version", version),))])
        at = totals.agent.get("at")
        started = float(at) if isinstance(at, int | float) else 0.0
        yield gauge("cnimeta_agent_start_time_seconds", "When the agent was started, or started again", started)


def agent_is_alive(totals: Totals) -> bool:
    """Whether the process is there that has said so, and not another one of its number."""
    pid, ticks = totals.agent.get("pid"), totals.agent.get("ticks")
    return isinstance(pid, int) and isinstance(ticks, int) and process_ticks(pid) == ticks


def process_ticks(pid: int) -> int:
    """When a process was started, in ticks since boot: with its ID, it is known by that. 0 when it is gone."""
    try:
        with open(f"/proc/{os.getpid() if pid == 0 else pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
