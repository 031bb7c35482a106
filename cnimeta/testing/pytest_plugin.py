"""The pytest plugin, which pytest finds by itself: `--cni-plugin`, and the fixtures of `cnimeta.testing.fixtures`.

    pytest --cni-plugin=mine --cni-conf=conformance.json

runs the conformance suite, a test for each rule: of the plugin that an installed package registers under that name, or
of any executable when a path is given. Needs root. Nothing but pytest is imported until it is asked for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from cnimeta.testing.fixtures import cni_bridge as cni_bridge
from cnimeta.testing.fixtures import cni_call as cni_call
from cnimeta.testing.fixtures import cni_clock as cni_clock
from cnimeta.testing.fixtures import cni_exec as cni_exec
from cnimeta.testing.fixtures import cni_host as cni_host
from cnimeta.testing.fixtures import cni_namespaces as cni_namespaces
from cnimeta.testing.fixtures import cni_node as cni_node
from cnimeta.testing.fixtures import cni_noop as cni_noop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cnimeta.spec.jsonio import JSON
    from cnimeta.testing.conformance.rules import Rules
    from cnimeta.testing.conformance.table import Rule

_CASE_S = 20.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("cni", "conformance of a CNI plugin (cnimeta)")
    group.addoption("--cni-plugin", metavar="NAME|PATH", help="an installed plugin, or an executable: a test a rule")
    group.addoption("--cni-conf", metavar="FILE", help='its configuration without prevResult (default: {"type": NAME})')
    group.addoption("--cni-bin-dir", metavar="DIR[:DIR]", default="", help="where its delegates are")
    group.addoption("--cni-interface-plugin", action="store_true", help="it is not chained: gets no prevResult")
    group.addoption("--cni-timeout", type=float, default=_CASE_S, metavar="S", help="for each rule (%(default)s)")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the rules to what was collected."""
    if config.getoption("--cni-plugin"):
        items.extend(Conformance.from_parent(session, name="conformance").collect())


class Conformance(pytest.Collector):
    """The rules, and the one subject that all of them are tested on."""

    _sandbox: Any = None
    _rules: Rules | None = None

    def collect(self) -> Iterator[RuleItem]:
        """An item a rule."""
        from cnimeta.testing.conformance import RULES

        for rule in RULES:
            yield RuleItem.from_parent(self, name=rule.words, rule=rule)

    def rules(self) -> Rules:
        """The subject, made for the first rule that runs."""
        if self._rules is None:
            from cnimeta.testing.conformance.rules import Rules
            from cnimeta.testing.conformance.subject import sandbox

            path, conf = self._plugin()
            option = self.config.getoption
            self._sandbox = sandbox(
                path,
                conf,
                chained=not option("--cni-interface-plugin"),
                timeout_s=option("--cni-timeout"),
                folders=tuple(folder for folder in option("--cni-bin-dir").split(":") if folder),
            )
            subject = self._sandbox.__enter__()
            self.session.addfinalizer(self._close)
            self._rules = Rules(subject)
        return self._rules

    def _close(self) -> None:
        self._sandbox.__exit__(None, None, None)

    def _plugin(self) -> tuple[str, dict[str, JSON]]:
        """The executable, a launcher of its own for an installed plugin, and the configuration."""
        from cnimeta.spec.jsonio import loads_object

        name, file = self.config.getoption("--cni-plugin"), self.config.getoption("--cni-conf")
        conf: dict[str, JSON] = {"type": os.path.basename(name)}
        if file:
            with open(file, "rb") as opened:
                conf = loads_object(opened.read(), file)
        return (name if os.sep in name else self._launcher(name)), conf

    def _launcher(self, name: str) -> str:
        import subprocess
        import sys
        import tempfile

        folder = tempfile.TemporaryDirectory(prefix="cnimeta-")
        self.session.addfinalizer(folder.cleanup)
        words = ["-m", "cnimeta.cli.main", "install", "--bin-dir", folder.name, "--only", name]
        done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True)
        if done.returncode:
            raise pytest.UsageError(done.stderr.strip())
        return os.path.join(folder.name, name)


class RuleItem(pytest.Item):
    """One rule."""

    def __init__(self, *, rule: Rule, **more: Any) -> None:
        super().__init__(**more)
        self.rule = rule

    def runtest(self) -> None:
        """Judge the plugin by it."""
        from cnimeta.testing.conformance.examination import FAIL, NOT_APPLICABLE, judge

        parent = self.parent
        assert isinstance(parent, Conformance)
        finding = judge(parent.rules(), self.rule)
        if finding.outcome == NOT_APPLICABLE:
            pytest.skip(finding.detail)
        if finding.outcome == FAIL:
            raise RuleBroken(f"{finding.detail}\nthe specification: {finding.sentence} ({finding.clause})")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What was seen, without a traceback of this suite."""
        if isinstance(excinfo.value, RuleBroken):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        """How it is named."""
        return "conformance", None, self.name


class RuleBroken(AssertionError):
    """The plugin breaks a rule; the text says what was seen and what the specification says."""
