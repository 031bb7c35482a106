"""The API server of a soak, in a process of its own: the process that forks commands has no threads."""

from __future__ import annotations

import json
import os
import signal
from multiprocessing import Pipe
from typing import TYPE_CHECKING

from cnimeta.testing.kube import Fault, PodServer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_FAULTS = (Fault(status=503), Fault(drop=True), Fault(status=500))
_HOSTPORTS, _CONTAINER = "cnimeta.io/hostports", "cnimeta.io/hostports-container"


class Pods:
    """The server. Every Pod of a container `name` is default/`name`, with the uid `uid-name`."""

    def __init__(self, folder: str) -> None:
        ours, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ours.close()
                _serve(folder, theirs)
            finally:
                os._exit(0)
        theirs.close()
        self._link = ours
        self.kubeconfig: str = ours.recv()

    def create(self, name: str) -> None:
        """A Pod without annotations."""
        self._ask("create", name)

    def fail(self, times: int) -> None:
        """The next requests, three for each of `times`, get no good answer."""
        self._ask("fail", times)

    def is_failing(self) -> bool:
        """Whether the next request would get none."""
        return bool(self._ask("failing", None))

    def told(self) -> dict[str, set[tuple[str, int, int]]]:
        """What the annotations say, by container: (protocol, host port, container port)."""
        found: dict[str, set[tuple[str, int, int]]] = {}
        for container, text in self._ask("told", None):  # type: ignore[attr-defined]
            rows = json.loads(text)
            found[container] = {(row["protocol"].lower(), row["hostPort"], row["containerPort"]) for row in rows}
        return found

    def _ask(self, what: str, about: object) -> object:
        self._link.send((what, about))
        answer: object = self._link.recv()
        return answer

    def close(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _serve(folder: str, link: Connection) -> None:
    server = PodServer(folder)
    pods = server.pods
    link.send(server.kubeconfig(f"{folder}/kubeconfig", token=server.token("cnimeta")))
    while True:
        try:
            what, about = link.recv()
        except EOFError:
            return
        answer: object = None
        if what == "create":
            pods.create("default", about, uid=f"uid-{about}", annotations={})
        elif what == "fail":
            pods.faults = list(_FAULTS) * about
        elif what == "failing":
            answer = bool(pods.faults)
        elif what == "told":
            all_of = [pods.annotations(*key) for key in list(pods.objects)]
            answer = [(one[_CONTAINER], one[_HOSTPORTS]) for one in all_of if one.get(_HOSTPORTS)]
        pods.requests.clear()
        link.send(answer)
