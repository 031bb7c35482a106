"""What the agent does before the first container comes: it learns which memory serving takes."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest

from cnimeta.agent import worker
from cnimeta.agent.log import Log
from cnimeta.agent.pages import Range, take, tell, told
from cnimeta.agent.peer import own_capabilities
from cnimeta.agent.plugins import Code
from cnimeta.agent.rehearsal import Stage
from cnimeta.agent.wire import identity
from cnimeta.agent.worker import Service
from cnimeta.errors import IoFailure
from cnimeta.plugin.base import Plugin
from cnimeta.plugin.launcher import package_folder
from cnimeta.plugin.registry import installed, load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.plugin.request import Request
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result

pytestmark = pytest.mark.kernel
PAGE = os.sysconf("SC_PAGE_SIZE")


def forked(run: Callable[[int], object]) -> bytes:
    """What a process of its own writes to the descriptor that it is given."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            run(writing)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    return found


def rehearsed(
    plugins: list[type[Plugin]], folder: Path, make_stage: Callable[[str], Stage] = Stage
) -> tuple[list[str], list[str]]:
    """What a rehearsal logs, and what the plugins note."""

    def run(descriptor: int) -> None:
        named = {}
        for plugin in plugins:
            setattr(plugin, "descriptor", descriptor)  # noqa: B010 - some have none
            named[identity(package_folder(), f"tests:{plugin.name}")] = plugin()
        service = Service(named, Code([]), own_capabilities(), Log(descriptor=descriptor))
        worker.rehearse(service, str(folder / "rehearsal"), make_stage)

    lines = forked(run).decode().splitlines()
    mark = "cnimeta agent: "
    logged = [one.removeprefix(mark) for one in lines if one.startswith(mark)]
    return logged, [one for one in lines if not one.startswith(mark)]


def seen(folder: Path) -> tuple[list[str], list[str], str]:
    """What a stage could leave: files, interfaces; and the namespace that this process is in."""
    return sorted(os.listdir(folder)), sorted(os.listdir("/sys/class/net")), os.readlink("/proc/self/ns/net")


def test_every_plugin_of_ours_that_names_something_can_be_rehearsed_and_nothing_is_left(tmp_path: Path) -> None:
    left = tmp_path / "rehearsal" / "of one that was killed"
    left.mkdir(parents=True)
    plugins = [load(target) for target in installed().values()]
    assert {"portmap", "bandwidth"} <= {plugin.name for plugin in plugins if [*plugin.rehearsal()]}
    watched = [type("Watching", (Watched,), {"name": plugin.name, "plugin": plugin}) for plugin in plugins]
    before = seen(tmp_path)
    said, done = rehearsed(watched, tmp_path)
    assert said == []
    verbs = ("ADD", "ADD", "CHECK", "DEL", "DEL")
    assert done == [f"{plugin.name} {verb}" for plugin in plugins for _ in plugin.rehearsal() for verb in verbs]
    assert seen(tmp_path) == ([], *before[1:])


class Watched(Plugin):
    """A plugin that notes how each verb ended: the answer of a rehearsal is not looked at."""

    descriptor = -1
    plugin = Plugin()

    def rehearsal(self) -> list[dict[str, JSON]]:
        return [*self.plugin.rehearsal()]

    def add(self, request: Request) -> Result:
        result = self.plugin.add(request)
        self.note(request)
        return result

    def check(self, request: Request) -> None:
        self.plugin.check(request)
        self.note(request)

    def delete(self, request: Request) -> None:
        self.plugin.delete(request)
        self.note(request)

    def note(self, request: Request) -> None:
        os.write(self.descriptor, f"{self.name} {request.verb}\n".encode())


class Failing(Plugin):
    """A plugin whose rehearsal cannot be told."""

    name = "failing"

    def rehearsal(self) -> list[dict[str, JSON]]:
        raise IoFailure("no")


class Seeing(Plugin):
    """A plugin that notes what it is called with."""

    name = "seeing"
    descriptor = -1

    def rehearsal(self) -> list[dict[str, JSON]]:
        return [{"key": "value"}]

    def add(self, request: Request) -> Result:
        self.note(request)
        raise ValueError("what goes wrong in a plugin is its answer")

    def check(self, request: Request) -> None:
        self.note(request)

    def delete(self, request: Request) -> None:
        self.note(request)

    def note(self, request: Request) -> None:
        folder = str(request.conf.raw["dataDir"])
        there = os.path.isdir(folder) and request.conf.raw["key"] == "value"
        place = os.readlink("/proc/thread-self/ns/net")
        os.write(self.descriptor, f"{request.verb} {there} {place}\n".encode())


def test_one_that_fails_is_told_of_and_keeps_nobody_from_rehearsing(tmp_path: Path) -> None:
    said, noted = rehearsed([Failing, Seeing], tmp_path)
    assert said == ['failing is not rehearsed: IoFailure: "no"']
    assert [line.split()[:2] for line in noted] == [[verb, "True"] for verb in ("ADD", "ADD", "CHECK", "DEL", "DEL")]
    places = {line.split()[2] for line in noted}
    assert len(places) == 1
    assert os.readlink("/proc/self/ns/net") not in places


def test_plugins_are_not_called_where_no_stage_can_be_made(tmp_path: Path) -> None:
    before, descriptors = seen(tmp_path), len(os.listdir("/proc/self/fd"))

    def refused() -> int:
        raise PermissionError(1, "Operation not permitted")

    def made(folder: str) -> Stage:
        return Stage(folder, refused)

    with pytest.raises(PermissionError):
        made(str(tmp_path / "rehearsal"))
    assert rehearsed([Seeing], tmp_path, made) == (
        ['plugins are not rehearsed: "[Errno 1] Operation not permitted"'],
        [],
    )
    assert seen(tmp_path) == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


def faults_in_fork(ranges: tuple[Range, ...], buffer: bytearray, *, populates: bool = True) -> int:
    """Pages that a fork has to be given while it writes to each page of the buffer."""

    def run(descriptor: int) -> None:
        if populates:
            take(ranges)
        else:  # a kernel before 5.14
            take(ranges, lambda *_: -1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for at in range(0, len(buffer), PAGE):
            buffer[at] = 1
        os.write(descriptor, str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before).encode())

    return int(forked(run))


@pytest.mark.parametrize("populates", [True, False])
def test_the_pages_that_are_written_to_are_learnt_and_taken(populates: bool) -> None:
    buffer = bytearray(b"\1" * (300 * PAGE))

    def write() -> None:
        for at in range(0, len(buffer), PAGE):
            buffer[at] = 2

    ranges = told(forked(lambda descriptor: tell(descriptor, write)))
    assert sum(one.length for one in ranges if one.written) >= 300 * PAGE
    assert faults_in_fork((), buffer) >= 300
    assert faults_in_fork(ranges, buffer, populates=populates) < 30
    assert buffer == b"\1" * (300 * PAGE)


def test_nothing_is_learnt_from_a_process_that_fails_or_is_cut_off() -> None:
    def fail() -> None:
        raise SystemExit

    assert told(forked(lambda descriptor: tell(descriptor, fail))) == ()
    assert told(forked(lambda descriptor: tell(descriptor, lambda: os.kill(os.getpid(), 9)))) == ()
    whole = forked(lambda descriptor: tell(descriptor, lambda: None))
    assert told(whole[:-1]) == ()
