"""The packet path: what a new connection through a mapped port costs, however many ports are mapped."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import picture
from common import PICTURES, QUICK, REFERENCE
from speed import Where, fill_iptables, fill_nftables, once, portmap_conf

from cnimeta.cli.install import install
from cnimeta.testing.netns import namespaces

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.testing.netns import Namespace

TITLE = "Packet path"
NOTE = """
A TCP connection from another namespace through the port that was mapped last, one after the other: median time of
each, in microseconds. Beside it the rules of the reference's iptables backend, of which a new connection passes one for
each container that is mapped; ours is one look-up in a map.
"""
SIZES = (1, 1000) if QUICK else (1, 100, 1000, 5000, 20_000)
SIZES_REFERENCE = (1, 1000) if QUICK else (1, 100, 1000, 5000)
"""Where more is added, its kernel takes minutes to take the rules."""
CONNECTIONS = 300 if QUICK else 1500
NODE, CLIENT = "192.0.2.1", "192.0.2.9"


def connect_us(folder: str, size: int, fill: Callable[[Namespace, int], None], state: str) -> float:
    """The median time of a new connection with `size` ports mapped, the last of them measured."""
    with namespaces("node", "client", "ctr") as (node, client, container):
        node.veth("up0", client, "eth0")
        node.veth("down0", container, "eth0")
        node.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        node.run("ip", "addr", "add", f"{NODE}/24", "dev", "up0")
        client.run("ip", "addr", "add", f"{CLIENT}/24", "dev", "eth0")
        node.run("ip", "addr", "add", "10.64.0.1/10", "dev", "down0")
        container.run("ip", "addr", "add", "10.64.255.2/10", "dev", "eth0")
        container.run("ip", "route", "add", "default", "via", "10.64.0.1")
        where = Where(folder, node, {})
        conf = portmap_conf(f"{state}/{size}", backend="nftables" if fill is fill_nftables else "iptables")
        once(where, "portmap", "ADD", container.path, conf)
        once(where, "portmap", "DEL", container.path, conf)  # the measured port comes last, the base is there
        if fill is fill_nftables:
            once(where, "portmap", "ADD", container.path, conf)
        fill(node, size - 1)
        if fill is not fill_nftables:
            once(where, "portmap", "ADD", container.path, conf)
        with container.entered():
            listener = socket.create_server(("10.64.255.2", 80), backlog=512)
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        times = []
        with client.entered():
            for _ in range(CONNECTIONS):
                started = time.perf_counter()
                socket.create_connection((NODE, 4000), timeout=5).close()
                times.append((time.perf_counter() - started) * 1e6)
        listener.close()
        return statistics.median(times)


def _accept(listener: socket.socket) -> None:
    try:
        while True:
            listener.accept()[0].close()
    except OSError:
        return


def section() -> str:
    """The part of the document."""
    with tempfile.TemporaryDirectory() as folder:
        install(f"{folder}/bin", ["portmap"])
        ours = {size: connect_us(f"{folder}/bin", size, fill_nftables, f"{folder}/ours") for size in SIZES}
        theirs = {size: connect_us(REFERENCE, size, fill_iptables, f"{folder}/theirs") for size in SIZES_REFERENCE}
    lines = [f"## {TITLE}", "", NOTE.strip(), "", "| mapped ports | cnimeta | reference | ratio |", "|---|---|---|---|"]
    for size, spent in ours.items():
        beside = f"{theirs[size]:,.1f} µs | {spent / theirs[size]:.2f}" if size in theirs else "not measured |"
        lines.append(f"| {size:,} | {spent:,.1f} µs | {beside} |")
    series = {"cnimeta": list(ours.values()), "reference": list(theirs.values())}
    picture.lines(PICTURES / "path.svg", "A new connection by mapped ports", SIZES, series, "µs")
    lines += ["", "![time of a new connection by mapped ports](pictures/path.svg)"]
    return "\n".join(lines) + "\n"


if os.geteuid() != 0:
    raise SystemExit("this benchmark makes network namespaces and needs root")
if __name__ == "__main__":
    print(section())
