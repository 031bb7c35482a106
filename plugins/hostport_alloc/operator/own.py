"""A configuration of our own beside the primary network's, and in step with it.

A primary network rewrites its own file when it pleases, at boot too, before anything of ours runs. So its file is left
alone: ours is another one, lexically first, which is the one that runtimes take. It is derived from the primary's and
derived anew when that changes. It is never removed but by `wrap --own --unwrap`, and what it says needs no process.
"""

from __future__ import annotations

import os

from cnimeta.errors import CniError, DecodingFailure, InvalidNetworkConfig, IoFailure, shown
from cnimeta.host.waiting import flocked, shared
from cnimeta.namedtuple import NamedTuple
from cnimeta.observe import notes
from cnimeta.plugin.report import leave_event
from cnimeta.runtime.conf import LIST_SUFFIX, SINGLE_SUFFIXES, config_names
from cnimeta.spec.fields import Fields, without
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.config import read_settings
from cnimeta_plugins.hostport_alloc.operator.conf import OWN_NAME
from cnimeta_plugins.hostport_alloc.operator.wrap import Options, wrapped
from cnimeta_plugins.hostport_alloc.operator.wrapfile import read_document, render, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnimeta.host.protocols import Clock
    from cnimeta.spec.jsonio import JSON

NAME = OWN_NAME
SUFFIX = ".cnimeta-own"
"""Never change: beside our file, what it is made from. No runtime loads files that end like this."""
LOOK_S = 0.5
"""Between two looks at the primary's file: reading it costs some 50 microseconds."""
_FOUGHT_S = 60.0
_MODE = 0o644


class Ownership(NamedTuple):
    """What our file is derived from."""

    folder: str
    primary: str
    """The name of the primary network's file."""
    options: Options

    @property
    def path(self) -> str:
        """Our file."""
        return os.path.join(self.folder, NAME)

    @property
    def source(self) -> str:
        """The primary's."""
        return os.path.join(self.folder, self.primary)


def derived(document: Mapping[str, JSON], options: Options) -> dict[str, JSON]:
    """Our conflist from the primary's document. Raises InvalidNetworkConfig (code 7)."""
    found = wrapped(document, options)
    if not Fields(found).has("plugins"):
        head: dict[str, JSON] = {key: found[key] for key in found if key.lower() in ("cniversion", "name")}
        found = {**head, "plugins": [without(found, "cniVersion", "name")]}
    (entry,) = Fields(found).objects("plugins")
    read_settings(NetConf({**entry.raw, "name": Fields(found).text("name")}))
    return found


def take(path: str, options: Options) -> Ownership:
    """Write our file for the primary's at `path`. Raises CniError, and has changed nothing then.

    What it is made from is written first, and the configuration last: a runtime sees all or nothing.
    """
    folder, primary = os.path.split(os.path.abspath(path))
    own = Ownership(folder, primary, options)
    before = [name for name in configurations(folder) if name < NAME]
    if before:
        raise InvalidNetworkConfig(
            f"{', '.join(before)} in {folder} would come before {NAME}, and runtimes take the first: rename it"
        )
    taken = [name for name in configurations(folder) if name != NAME]
    if taken and taken[0] < primary:
        raise InvalidNetworkConfig(
            f"{taken[0]} in {folder} comes before {primary} and is what runtimes take now; {NAME} would come before"
            f" both: take {taken[0]}, or wrap {primary} in place"
        )
    text = render(derived(read_document(path), options)).encode()
    given: dict[str, JSON] = {
        "ranges": dict(options.ranges),
        "expose": list(options.expose),
        "kubeconfig": options.kubeconfig,
        "policy": options.policy,
        "dataDir": options.data_dir,
    }
    body: dict[str, JSON] = {"version": 1, "primary": primary, "options": given}
    try:
        replace(own.path + SUFFIX, render(body).encode(), 0o600)
        replace(own.path, text, _MODE)
    except OSError as error:
        raise IoFailure(f"cannot write {shown(own.path)}: {error.strerror or error}") from None
    return own


def configurations(folder: str) -> list[str]:
    """What runtimes find in a folder, in their order."""
    return config_names(folder, LIST_SUFFIX, *SINGLE_SUFFIXES)


def ownership(folder: str) -> Ownership | None:
    """What was taken in a folder, if anything was. Raises CniError when that cannot be told."""
    path = os.path.join(folder, NAME + SUFFIX)
    if not os.path.lexists(path):
        return None
    fields = Fields(read_document(path), shown(path) + ": $")
    given = fields.object("options")
    kubeconfig = given.get("kubeconfig")
    options = Options(
        {name: str(ports) for name, ports in given.object("ranges").raw.items()},
        given.texts("expose"),
        kubeconfig if isinstance(kubeconfig, str) else None,
        given.text("policy"),
        given.text("dataDir"),
    )
    primary = fields.text("primary")
    if not primary or "/" in primary:
        raise DecodingFailure(f"{shown(path)} names no file: {shown(primary)}")
    return Ownership(folder, primary, options)


def give_back(folder: str) -> Ownership:
    """Remove our file, so that the primary's is the first again. Raises IoFailure (code 5)."""
    own = ownership(folder)
    if own is None:
        raise IoFailure(f"no configuration in {shown(folder)} is ours: there is no {NAME}{SUFFIX}")
    if not os.path.exists(own.source):
        raise IoFailure(f"{shown(own.source)} is gone, and the node would have no network without {NAME}")
    for path in (own.path, own.path + SUFFIX):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
    return own


def in_step(own: Ownership) -> tuple[str, str]:
    """(state, message) of our file beside the primary's: ok, stale, missing, gone (the primary), unusable."""
    try:
        with open(own.path, "rb") as file:
            present: bytes | None = file.read()
    except FileNotFoundError:
        present = None
    except OSError as error:
        return "unusable", f"cannot read {shown(own.path)}: {error.strerror or error}"
    if not os.path.lexists(own.source):
        return "gone", f"{own.primary}, which {NAME} is derived from, is gone; {NAME} stays as it is"
    try:
        text = render(derived(read_document(own.source), own.options)).encode()
    except CniError as error:
        return "unusable", f"{own.primary} cannot be derived from, {NAME} stays as it is: {error}"
    if present is None:
        return "missing", f"{NAME} was removed"
    return (
        ("ok", f"{NAME} is in step with {own.primary}") if present == text else ("stale", f"{own.primary} has changed")
    )


class Mark:
    """By which a keeper shows that it is there: a shared lock on the file that says what ours is made from."""

    def __init__(self) -> None:
        self._descriptor = -1

    def show(self, own: Ownership) -> None:
        """Have it, also when the file was replaced since. Never raises."""
        try:
            if self._descriptor >= 0 and os.path.samestat(os.fstat(self._descriptor), os.stat(own.path + SUFFIX)):
                return
            self.close()
            descriptor = os.open(own.path + SUFFIX, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._descriptor = descriptor if shared(descriptor) else -1
            if self._descriptor < 0:
                os.close(descriptor)
        except OSError:  # the next look tries again
            pass

    def close(self) -> None:
        """Give it up."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_kept(own: Ownership) -> bool:
    """Whether any keeper is there. Raises IoFailure (code 5) when that cannot be told."""
    try:
        descriptor = os.open(own.path + SUFFIX, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return not flocked(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise IoFailure(f"cannot tell whether {shown(own.path)} is kept: {error.strerror or error}") from None


class Keeper:
    """Keeps the configuration of a folder in step; `look` is to be called again and again.

    A look reads both files as they are, so nothing that happens between two looks can be missed.
    """

    def __init__(self, folder: str, clock: Clock, log: Callable[[str], None]) -> None:
        self.folder = folder
        self._clock = clock
        self._log = log
        self._said = ""
        self._lost: list[float] = []
        self._mark = Mark()

    def look(self) -> str:
        """One look, and what it takes to be in step; the state that was found."""
        try:
            own = ownership(self.folder)
            if own is None:
                return "none"
            self._mark.show(own)
            state, message = in_step(own)
            if state in ("stale", "missing"):
                notes.begin()
                notes.count("cnimeta_configuration_derived_total", reason=state)
                replace(own.path, render(derived(read_document(own.source), own.options)).encode(), _MODE)
                message += ": it is derived anew"
                leave_event("wrap --own --keep", os.environ)
                self._count(state)
        except (CniError, OSError) as error:
            state, message = "unusable", str(error)
        if state != "ok" and (message != self._said or state in ("stale", "missing")):
            self._log(message)
        self._said = message
        return state

    def _count(self, state: str) -> None:
        """Somebody who removes our file again and again is named as what it is."""
        if state != "missing":
            return
        now = self._clock.boottime()
        self._lost = [*(moment for moment in self._lost if now - moment < _FOUGHT_S), now]
        if len(self._lost) == 3:
            self._log(
                f"{NAME} was removed three times in a minute: another program wants to be the only network, as Cilium"
                " does unless it has cni.exclusive=false"
            )

    def keep(self) -> None:
        """Until the process ends."""
        while True:
            self.look()
            self._clock.sleep(LOOK_S)
