"""A bounded run of the fuzzer, recorded calls in both spellings, and sequences of verbs along a chain."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cnimeta.delegate.call import Delegates
from cnimeta.errors import CniError, TryAgainLater
from cnimeta.plugin.dispatch import run
from cnimeta.spec.convert import render_result
from cnimeta.spec.result import Result
from cnimeta.testing.delegates import FakeDelegate, FakeExec, address_result

pytestmark = pytest.mark.unit
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture(scope="module")
def fuzzer():
    spec = importlib.util.spec_from_file_location("fuzz", os.path.join(ROOT, "bench", "fuzz.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [11, 12])
def test_no_input_breaks_the_protocol_when_ten_thousand_are_fed(fuzzer, seed):
    faults, codes = fuzzer.fuzz(seed, 10_000)
    assert faults == []
    assert {0, 1, 4, 6, 7, 8} <= set(codes)


def recorded():
    with open(os.path.join(ROOT, "tests", "data", "kubelet_containerd_calls.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def respelt(value, change):
    if isinstance(value, dict):
        return {change(key): respelt(item, change) for key, item in value.items()}
    return [respelt(item, change) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("index", range(len(recorded())))
def test_a_recorded_call_is_read_the_same_in_every_spelling(fuzzer, index):
    """What each plugin's configuration reader and the fakes behind it answer does not depend on capitals."""
    entry = recorded()[index]
    stdin = entry["stdin"]
    stdin = {**stdin, "runtimeConfig": {k: v for k, v in stdin.get("runtimeConfig", {}).items() if "." not in k}}
    for plugin in fuzzer.plugins():
        answers = []
        for change in (str, str.upper, lambda key: key[:1].lower() + key[1:], lambda key: key[:1].upper() + key[1:]):
            body = {**respelt(stdin, change), "type": plugin.name}
            outcome = run(plugin, entry["env"], json.dumps(body).encode(), lambda line: None)
            answers.append(tuple(outcome))
            assert fuzzer.fault(entry["env"], outcome) is None
        assert len(set(answers)) == 1


@pytest.mark.parametrize("index", range(len(recorded())))
def test_a_recorded_result_is_what_the_sdk_would_print(index):
    """The reference's own result, read and written again, says the same (an empty dns apart)."""
    entry = recorded()[index]
    if entry["env"]["CNI_COMMAND"] != "ADD":
        return
    prev = {key: value for key, value in entry["stdin"]["prevResult"].items() if key != "dns"}
    plugin = FakeDelegate(entry["plugin"])
    outcome = run(plugin, entry["env"], json.dumps(entry["stdin"]).encode(), lambda line: None)
    printed = json.loads(outcome.stdout)
    printed["interfaces"] = printed["interfaces"][:-1]
    assert outcome.status == 0
    assert printed == prev


CONTAINERS = st.sampled_from(["c1", "c2", "c3"])
PLUGINS = ("bridge", "portmap", "bandwidth")


class Chain(RuleBasedStateMachine):
    """ADD forward, DEL backward, CHECK and GC, with failures: no plugin holds what the runtime does not know of."""

    def __init__(self):
        super().__init__()
        self.fakes = {name: FakeDelegate(name) for name in PLUGINS}
        self.fakes["bridge"].result = address_result("10.1.0.2/24")
        self.executor = FakeExec(*self.fakes.values())
        self.attached = {}

    def delegates(self, container):
        environ = {"CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_NETNS": "/n", "CNI_PATH": "/bin"}
        return Delegates(self.executor, environ, ["/bin"], self.executor.locate)

    def conf(self, name, prev=None, **more):
        body = {"cniVersion": "1.1.0", "name": "net", "type": name, **more}
        return body if prev is None else {**body, "prevResult": render_result(prev, "1.1.0")}

    def teardown_chain(self, container, upto=None):
        for name in reversed(PLUGINS[:upto]):
            self.delegates(container).delete(self.conf(name))

    @rule(container=CONTAINERS, failing=st.sampled_from([None, None, *PLUGINS]), late=st.booleans())
    def add(self, container, failing, late):
        if failing is not None:
            errors = self.fakes[failing].late_errors if late else self.fakes[failing].errors
            errors["ADD"] = TryAgainLater("not now")
        result: Result | None = None
        try:
            for position, name in enumerate(PLUGINS):
                try:
                    result = self.delegates(container).add(self.conf(name, result))
                except CniError as error:
                    assert (name, error.code) == (failing, 11)
                    self.teardown_chain(container, position)
                    self.attached.pop(container, None)
                    # the later plugins of an earlier ADD of the same container go too
                    self.teardown_chain(container)
                    return
            assert failing is None
            self.attached[container] = result
        finally:
            for fake in self.fakes.values():
                fake.errors.clear()
                fake.late_errors.clear()

    @rule(container=CONTAINERS)
    def delete(self, container):
        self.teardown_chain(container)
        self.attached.pop(container, None)

    @rule(container=CONTAINERS)
    def check(self, container):
        for name in PLUGINS:
            if container in self.attached:
                self.delegates(container).check(self.conf(name, self.attached[container]))
            else:
                with pytest.raises(CniError, match="does not know"):
                    self.delegates(container).check(self.conf(name))

    @rule(
        keep=st.none() | st.sets(CONTAINERS), key=st.sampled_from(["cni.dev/valid-attachments", "cni.dev/attachments"])
    )
    def gc(self, keep, key):
        more = {} if keep is None else {key: [{"containerID": one, "ifname": "eth0"} for one in sorted(keep)]}
        for name in PLUGINS:
            self.delegates("unused").gc(self.conf(name, **more))
        if keep is not None:
            self.attached = {one: result for one, result in self.attached.items() if one in keep}

    @invariant()
    def every_plugin_holds_exactly_what_is_attached(self):
        for fake in self.fakes.values():
            assert {key[1] for key in fake.attachments} == set(self.attached)

    @invariant()
    def results_grow_along_the_chain(self):
        for result in self.attached.values():
            assert [i.name for i in result.interfaces] == ["eth0", "portmap0", "bandwidt0"]


TestChain = Chain.TestCase
TestChain.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
