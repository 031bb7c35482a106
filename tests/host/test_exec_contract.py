"""One contract for every PluginExec: plugin objects in memory, and real executables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from cnimeta.delegate.spawn import ProcessExec
from cnimeta.errors import DelegateFailed, TryAgainLater
from cnimeta.host.values import Completed
from cnimeta.spec.convert import render_result
from cnimeta.testing.delegates import FakeDelegate, FakeExec, address_result
from cnimeta.testing.noop import received, write_noop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.host.protocols import PluginExec

pytestmark = pytest.mark.unit

CONF = json.dumps({"cniVersion": "1.1.0", "name": "net", "type": "p", "key": "välue"}).encode()
RESULT = address_result("10.1.0.2/24")


class Plugins(NamedTuple):
    """An executor, the path of its one plugin `p`, and the calls that got there: (verb, CNI_ARGS, stdin)."""

    executor: PluginExec
    path: str
    calls: Callable[[], list[tuple[str, str, bytes]]]


@pytest.fixture(params=["memory", "process"])
def plugins(request: pytest.FixtureRequest, tmp_path: Path) -> Plugins:
    if request.param == "process":
        path = write_noop(
            str(tmp_path),
            "p",
            {
                "ADD": {"result": render_result(RESULT, "1.1.0")},
                "DEL": {"code": 11, "msg": "busy"},
                "CHECK": {"stdout": "text", "exit": 3},
            },
        )
        return Plugins(
            ProcessExec(20),
            path,
            lambda: [(one.verb, one.environ.get("CNI_ARGS", ""), one.stdin.encode()) for one in received(path)],
        )
    plugin = FakeDelegate("p", RESULT)
    plugin.errors["DEL"] = TryAgainLater("busy")
    fake = FakeExec(plugin)
    fake.script("p", "CHECK", Completed(3, b"text"))
    return Plugins(
        fake,
        fake.locate("p", [str(tmp_path)]),
        lambda: [(one.verb, one.environ.get("CNI_ARGS", ""), one.stdin) for one in fake.calls],
    )


def environ(verb: str, **more: str) -> dict[str, str]:
    return {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/c1", **more}


def test_answer_is_on_stdout_and_the_status_is_0_when_it_succeeds(plugins: Plugins) -> None:
    done = plugins.executor.run(plugins.path, environ("ADD"), CONF)
    assert done.status == 0
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["ips"] == [{"address": "10.1.0.2/24", "interface": 0}]


def test_error_is_on_stdout_and_the_status_is_1_when_it_fails(plugins: Plugins) -> None:
    done = plugins.executor.run(plugins.path, environ("DEL"), CONF)
    assert done.status == 1
    assert {key: json.loads(done.stdout)[key] for key in ("code", "msg")} == {"code": 11, "msg": "busy"}


def test_status_and_stdout_are_passed_on_as_they_are(plugins: Plugins) -> None:
    assert plugins.executor.run(plugins.path, environ("CHECK"), CONF) == Completed(3, b"text")


def test_plugin_gets_environment_and_stdin_as_they_are(plugins: Plugins) -> None:
    for verb, args in (("ADD", "K=V"), ("DEL", "")):
        plugins.executor.run(plugins.path, environ(verb, CNI_ARGS=args), CONF)
    assert plugins.calls() == [("ADD", "K=V", CONF), ("DEL", "", CONF)]


def test_program_that_is_not_there_is_code_105(plugins: Plugins) -> None:
    with pytest.raises(DelegateFailed, match=r"failed to run plugin.*No such file") as caught:
        plugins.executor.run(plugins.path + "x", environ("ADD"), CONF)
    assert caught.value.code == 105
    assert plugins.calls() == []
