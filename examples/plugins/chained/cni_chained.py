"""A chained plugin that remembers each container's addresses, in files under "dataDir"."""

from cnimeta.errors import CheckFailed
from cnimeta.host.files import PosixFiles
from cnimeta.plugin import Plugin, Request
from cnimeta.spec.result import Result


class Chained(Plugin):
    name = "chained"
    about = "remembers which addresses a container got"
    files = PosixFiles()

    def add(self, request: Request) -> Result:
        result = request.conf.require_prev_result()
        self.files.write(path(request), " ".join(ip.address for ip in result.ips).encode())
        return result

    def delete(self, request: Request) -> None:
        self.files.remove(path(request))

    def check(self, request: Request) -> None:
        if self.files.read(path(request)) is None:
            raise CheckFailed(f"no record of container {request.attachment.container_id}")

    def gc(self, request: Request) -> None:
        valid = request.conf.valid_attachments()
        for name in self.files.names(folder(request)):
            if valid is not None and tuple(name.split("@", 1)) not in valid:
                self.files.remove(f"{folder(request)}/{name}")


def folder(request: Request) -> str:
    return f"{request.conf.fields.text('dataDir', '/var/lib/chained')}/{request.conf.name}"


def path(request: Request) -> str:
    return f"{folder(request)}/{request.attachment.container_id}@{request.attachment.ifname}"
