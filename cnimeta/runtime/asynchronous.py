"""The runtime for programs that run an event loop: the same verbs, awaited, each in a thread of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cnimeta.errors import CniError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import ParamSpec, TypeVar

    from cnimeta.runtime.chain import Container, Runtime
    from cnimeta.runtime.conf import Network
    from cnimeta.spec.result import Result

    P = ParamSpec("P")
    T = TypeVar("T")


class AsyncRuntime:
    """A Runtime, awaited. Attachments may be worked on side by side: each has a lock, in one process too.

    A verb that has begun is not broken off: who is cancelled waits until it has ended, and a cancelled `add` is undone
    by DEL then, unless `undo` is False.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    async def add(self, network: Network, container: Container, *, undo: bool = True) -> Result:
        """ADD along the chain."""
        try:
            return await _whole(self.runtime.add, network, container, undo=undo)
        except asyncio.CancelledError:
            if undo:
                try:
                    await _whole(self.runtime.delete, network, container)
                except CniError as error:
                    self.runtime.log(f"a cancelled ADD was undone, but not all of it: {error}")
            raise

    async def delete(self, network: Network, container: Container) -> None:
        """DEL back along the chain."""
        await _whole(self.runtime.delete, network, container)

    async def check(self, network: Network, container: Container) -> None:
        """CHECK along the chain."""
        await _whole(self.runtime.check, network, container)

    async def gc(self, network: Network, valid: Iterable[tuple[str, str]] | None) -> None:
        """DEL for what is not valid, and GC."""
        await _whole(self.runtime.gc, network, valid)

    async def status(self, network: Network) -> None:
        """STATUS of each plugin."""
        await _whole(self.runtime.status, network)

    async def validate(self, network: Network) -> dict[str, tuple[str, ...]]:
        """VERSION of each plugin."""
        return await _whole(self.runtime.validate, network)


async def _whole(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` gives, run in a thread to its end. Cancelled meanwhile: CancelledError, when it has ended."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:
                continue
        running.exception()  # seen: else the loop reports it
        raise
