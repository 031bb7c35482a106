"""The class a plugin author writes."""

from __future__ import annotations

from cnimeta.spec.version import ALL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.plugin.request import Request
    from cnimeta.spec.result import Result


class Plugin:
    """A CNI plugin: override the verbs it has; the SDK does the protocol.

    By the time a verb runs, the environment and the configuration have been validated, the version is one of
    `versions`, and CNI_NETNS is not the host's. Raise a `cnimeta.errors.CniError` to fail; anything else
    that escapes is reported as an internal error. Never print: stdout belongs to the protocol.
    """

    name = ""
    about = ""
    """One line for people who run the executable by hand."""
    versions: tuple[str, ...] = ALL

    def add(self, request: Request) -> Result:
        """Attach. A chained plugin returns prevResult, changed or not."""
        return request.conf.require_prev_result()

    def delete(self, request: Request) -> None:
        """Detach. Must succeed when repeated, and when anything it would remove is already gone."""

    def check(self, request: Request) -> None:
        """Raise if what ADD made is missing or wrong."""

    def gc(self, request: Request) -> None:
        """Remove everything of this network that is not in `request.conf.valid_attachments()` (None: keep all)."""

    def status(self, request: Request) -> None:
        """Raise PluginNotAvailable (50) or LimitedConnectivity (51) if ADD cannot be served in full."""
