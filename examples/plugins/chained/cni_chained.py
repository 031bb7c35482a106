"""A chained plugin that remembers each container's addresses, in records under "dataDir"."""

from cnimeta.errors import CheckFailed
from cnimeta.plugin import Plugin, Request
from cnimeta.spec.result import Result
from cnimeta.store.records import Records


class Chained(Plugin):
    name = "chained"
    about = "remembers which addresses a container got"

    def add(self, request: Request) -> Result:
        result = request.conf.require_prev_result()
        records(request).put(request.attachment.key, {"addresses": [ip.address for ip in result.ips]})
        return result

    def delete(self, request: Request) -> None:
        records(request).remove(request.attachment.key)

    def check(self, request: Request) -> None:
        if records(request).get(request.attachment.key) is None:
            raise CheckFailed(f"no record of container {request.attachment.container_id}")

    def gc(self, request: Request) -> None:
        for key in records(request).stale(request.conf):
            records(request).remove(key)


def records(request: Request) -> Records:
    return request.host.records(request.conf.fields.text("dataDir", "/var/lib/cni/chained"), log=request.log)
