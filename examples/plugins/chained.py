"""A chained plugin: it writes one line per attachment, and knows it again.

Configuration: {"type": "chained", "dataDir": "/var/lib/example"}
"""

from __future__ import annotations

import os

from cnimeta.errors import CheckFailed
from cnimeta.host.files import PosixFiles
from cnimeta.plugin import Plugin, Request, main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.result import Result


class Chained(Plugin):
    name = "chained"
    about = "remembers which addresses a container got"
    files = PosixFiles()

    def add(self, request: Request) -> Result:
        result = request.conf.require_prev_result()
        self.files.write(self._path(request), " ".join(ip.address for ip in result.ips).encode())
        return result

    def delete(self, request: Request) -> None:
        self.files.remove(self._path(request))

    def check(self, request: Request) -> None:
        if self.files.read(self._path(request)) is None:
            raise CheckFailed(f"no record of container {request.attachment.container_id}")

    def gc(self, request: Request) -> None:
        keep = request.conf.valid_attachments()
        for name in self.files.names(self._folder(request)) if keep is not None else ():
            container_id, _, ifname = name.rpartition("@")
            if (container_id, ifname) not in keep:
                self.files.remove(os.path.join(self._folder(request), name))

    def _folder(self, request: Request) -> str:
        return os.path.join(request.conf.fields.text("dataDir", "/var/lib/example"), request.conf.name)

    def _path(self, request: Request) -> str:
        return os.path.join(self._folder(request), f"{request.attachment.container_id}@{request.attachment.ifname}")


if __name__ == "__main__":
    main(Chained())
