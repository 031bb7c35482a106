"""A mount namespace of the subject's own: what plugins keep on a node begins empty there, and ends with it.

Network namespaces that are made later still appear in it (mounts go in, none go out).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from typing import TYPE_CHECKING

from cnimeta.errors import IoFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = ("/var/lib/cni", "/run/cni")
"""Where plugins keep what they know (libcni's cache, host-local's addresses, our records) unless told otherwise."""


@contextlib.contextmanager
def private_mounts() -> Iterator[int]:
    """The PID of a process that holds the namespace, for `nsenter --mount`. Raises IoFailure (code 5)."""
    made = [folder for folder in STATE if not os.path.isdir(folder)]
    for folder in made:
        os.makedirs(folder, exist_ok=True)
    mounts = " && ".join(f"mount -t tmpfs -o mode=0700 none {shlex.quote(folder)}" for folder in STATE)
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "slave", "sh", "-c", f"{mounts} && echo ready && exec sleep infinity"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        if holder.stdout is None or holder.stdout.readline() != b"ready\n":
            said = holder.communicate()[1].decode("utf-8", "replace").strip()
            raise IoFailure(f"cannot make a mount namespace: {said}")
        yield holder.pid
    finally:
        holder.kill()
        holder.communicate()
        for folder in made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
