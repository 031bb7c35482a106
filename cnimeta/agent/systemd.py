"""Telling the service manager how the agent is: sd_notify(3), which is one datagram. Without one, nothing is told."""

from __future__ import annotations

import os
import socket


class Manager:
    """What NOTIFY_SOCKET names. Taken out of the environment, so that no child speaks for the agent."""

    def __init__(self) -> None:
        self._path = os.environ.pop("NOTIFY_SOCKET", "")
        usec, pid = os.environ.pop("WATCHDOG_USEC", "0"), os.environ.pop("WATCHDOG_PID", "")
        self._watched = {"WATCHDOG_USEC": usec, **({"WATCHDOG_PID": pid} if pid else {})} if usec != "0" else {}

    def environ(self) -> dict[str, str]:
        """What was taken out, for the program that this process becomes."""
        return {**({"NOTIFY_SOCKET": self._path} if self._path else {}), **self._watched}

    def ready(self) -> None:
        """It listens, and what it serves is loaded."""
        self._tell("READY=1")

    def alive(self) -> None:
        """For WatchdogSec=, to be called more often than that."""
        if self._watched:
            self._tell("WATCHDOG=1")

    def reloading(self) -> None:
        """It is about to load everything anew."""
        self._tell("RELOADING=1")

    def stopping(self) -> None:
        """It takes no more."""
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
                link.settimeout(1)
                link.sendto(state.encode(), address)
        except OSError:
            pass  # a manager that does not listen is no reason not to work
