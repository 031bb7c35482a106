"""What a backend is: one way to map ports on a host. The mapper gives the order of the steps, the backend takes them.

A backend keeps what it must know later in a payload of its own type, `P`, which stands in the attachment's record from
before the first rule until after the last. Nothing else is remembered: each command makes its backends anew. How to
write one: docs/portmap_backends.md. Imported for type checking only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cnimeta.ports.mapper import MappedPort
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.portmap.config import PortMapping
    from cnimeta_plugins.portmap.others import Others
    from cnimeta_plugins.portmap.plan import Owner, Plan

P = TypeVar("P")


class Backend(Protocol[P]):
    """One way to map ports. Every failure is a CniError; removing what is not there is none."""

    # --- an attachment with a record -------------------------------------------------------------------------

    def plan(self, plan: Plan, before: P | None, others: Others) -> P:
        """What ADD is about to put in, in place of `before`. Changes nothing."""
        ...

    def both(self, before: P, after: P) -> P:
        """What there may be while `before` is replaced by `after`."""
        ...

    def add(self, plan: Plan, payload: P, before: P | None, others: Others) -> None:
        """Put in what `plan` returned, take out what there is of `before`; when it fails, nothing of it is left.

        HostPortConflict (code 100) names who has a port already; one that is dead loses it.
        """
        ...

    def check(self, plan: Plan, payload: P | None) -> None:
        """CheckFailed (code 101) unless all is there as ADD would put it in; `payload` is the record's, if any."""
        ...

    def remove(self, owner: Owner, payload: P) -> None:
        """Take out what `payload` names and what is the owner's."""
        ...

    # --- what there is without a record ----------------------------------------------------------------------

    def sweep(self, owner: Owner, mappings: Sequence[PortMapping] | None, others: Others) -> bool:
        """Take out what there is of an attachment without a record, and what other programs' portmap made for it.

        `mappings` tell where to look: those of its configuration, none when its record was there, None for everywhere.
        What the rules of these tell to be the same interface's, under another name of the network, goes too.
        True when there was any.
        """
        ...

    def collect(self, network: str, valid: Collection[tuple[str, str]], others: Others) -> None:
        """Take out what there is without a record of attachments (container ID, ifname) of a network not in `valid`."""
        ...

    def require_free(self, plan: Plan, others: Others) -> None:
        """Raise HostPortConflict (code 100) when rules of this kind map a wanted port for another container.

        Asked of the backends that do not serve the plan, where the host may have rules of their kind.
        """
        ...

    def heal(self) -> None:
        """Put right what all mappings rely on, where another program changed it. ADD mends what it sees at a glance."""
        ...

    def tidy(self) -> None:
        """Take out what is shared and nobody needs any more."""
        ...

    def listed(self) -> Iterable[MappedPort]:
        """Every mapped port that tells its whole attachment by itself."""
        ...

    def frozen(self) -> Backend[P]:
        """The same for `check` alone, on one reading of the host, however many attachments are asked for."""
        ...

    # --- the rest --------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Raise Unusable unless ADD could be served on this host; another CniError when that cannot be told."""
        ...

    def payload(self, value: JSON) -> P:
        """Read a payload from its JSON. CniError when it is damaged."""
        ...


AnyBackend = Backend[Any]
"""A backend whose payload's type is its own affair: what one wrote goes back to the same only."""
