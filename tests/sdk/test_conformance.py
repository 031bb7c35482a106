"""The conformance suite passes our plugins, finds what the reference does otherwise, and is not fooled."""

from __future__ import annotations

import importlib.util
import os
import stat

import pytest

from cnimeta.testing.conformance import FAIL, NOT_APPLICABLE, PASS, examine
from cnimeta.testing.conformance_subject import sandbox

pytestmark = pytest.mark.kernel
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", os.path.join(ROOT, "bench", "conformance_report.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reports(report):
    return report.all_reports("/usr/lib/cni")


def failed(findings):
    return {finding.rule for finding in findings if finding.outcome == FAIL}


@pytest.mark.parametrize("plugin", ["portmap", "bandwidth", "hostport_alloc"])
def test_every_rule_is_kept_when_the_plugin_is_ours(reports, plugin):
    assert [finding for finding in reports[plugin] if finding.outcome == FAIL] == []
    assert sum(finding.outcome == PASS for finding in reports[plugin]) >= 21


def test_known_deviations_are_found_when_the_plugin_is_the_reference(reports):
    found = failed(reports["reference portmap"])
    assert "VERSION echoes the cniVersion it is asked in" in found
    assert "CHECK fails, with a specific code, when nothing is there" in found
    assert "ADD of a chained plugin without prevResult has a specific code" in found
    outcomes = {finding.rule: finding.outcome for finding in reports["reference portmap"]}
    assert outcomes["GC frees what is not listed"] == NOT_APPLICABLE
    assert "CHECK fails, with a specific code, when nothing is there" in failed(reports["reference bandwidth"])


def test_the_page_says_what_the_suite_finds(report, reports):
    table = [line for line in report.rendered(reports).splitlines() if line.startswith("| ")]
    with open(os.path.join(ROOT, "docs", "conformance.md"), encoding="utf-8") as file:
        assert [line for line in file.read().splitlines() if line.startswith("| ")] == table


STUB = """#!/bin/sh
# Does nothing, remembers nothing, and prints a result and then an error in its own namespace.
conf=$(cat)
result=$(printf '%s' "$conf" | sed -e 's/.*"prevResult"://' -e 's/}$//')
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}';;
ADD) echo "$result"
  if [ "$(stat -L -c %i "$CNI_NETNS")" = "$(stat -L -c %i /proc/self/ns/net)" ]; then
    printf '{\\n  "code": 8,\\n  "msg": "same namespace"\\n}\\n'; exit 1
  fi;;
esac
exit 0
"""


def test_stubs_and_two_documents_are_found_when_a_plugin_only_pretends(tmp_path):
    path = tmp_path / "stub"
    path.write_text(STUB)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    with sandbox(str(path), {"type": "stub"}) as subject:
        findings = examine(subject)
    found = failed(findings)
    assert "GC frees what is not listed" in found
    assert "ADD into the plugin's own namespace fails with one document" in found
    assert "DEL works without prevResult" in found
    assert "CHECK fails, with a specific code, when nothing is there" in found
    details = {finding.rule: finding.detail for finding in findings}
    assert "not one document" in details["ADD into the plugin's own namespace fails with one document"]
