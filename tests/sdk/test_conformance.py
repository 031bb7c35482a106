"""The conformance suite passes our plugins, finds what the reference does otherwise, and is not fooled."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cnimeta.cli.main import main
from cnimeta.errors import IoFailure
from cnimeta.testing.conformance import FAIL, NOT_APPLICABLE, PASS, RULES, examine
from cnimeta.testing.conformance.rules import shouted
from cnimeta.testing.conformance.subject import sandbox

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]  # some hundred programs for each report
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
# Leaves a file that it never looks at, and prints a result and then an error in its own namespace.
conf=$(cat)
result=$(printf '%s' "$conf" | sed -e 's/.*"prevResult"://' -e 's/}$//')
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}';;
ADD) touch /var/lib/cni/stub; echo "$result"
  if [ "$(stat -L -c %i "$CNI_NETNS")" = "$(stat -L -c %i /proc/self/ns/net)" ]; then
    printf '{\\n  "code": 8,\\n  "msg": "same namespace"\\n}\\n'; exit 1
  fi;;
esac
exit 0
"""


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_stubs_and_two_documents_are_found_when_a_plugin_only_pretends(tmp_path):
    with sandbox(executable(tmp_path / "stub", STUB), {"type": "stub"}) as subject:
        findings = examine(subject)
    found = failed(findings)
    assert "GC frees what is not listed" in found
    assert "ADD into the plugin's own namespace fails with one document" in found
    assert "DEL works without prevResult" in found
    assert "CHECK fails, with a specific code, when nothing is there" in found
    details = {finding.rule: finding.detail for finding in findings}
    assert "not one document" in details["ADD into the plugin's own namespace fails with one document"]


HANGING = """#!/bin/sh
# In GC it waits for ever, and so do its children: one in the background, one in a session of its own, one in another
# network namespace. They are known by what they sleep.
case $CNI_COMMAND in
GC) sleep 7654321 & setsid sleep 7654321 & nsenter --net="$CNI_PATH/netns" sleep 7654321 & wait;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}';;
esac
"""
BACKGROUND = """#!/bin/sh
# It ends at once, and leaves somebody who holds its stdout: a runtime would wait for ever.
setsid sleep 7654321 &
"""


def sleepers():
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path] if b"7654321" in path.read_bytes().split(b"\0") else []
        except OSError:
            continue
    return found


def test_one_case_fails_and_nothing_is_left_running_when_a_plugin_hangs(tmp_path, make_netns):
    (tmp_path / "netns").symlink_to(make_netns("elsewhere").path)
    with sandbox(executable(tmp_path / "hanging", HANGING), {"type": "hanging"}, timeout_s=1) as subject:
        findings = {finding.rule: finding for finding in examine(subject)}
    for rule in ("GC frees what is not listed", "GC keeps what is listed, and everything without a list"):
        assert findings[rule].outcome == FAIL
        assert "did not end in time" in findings[rule].detail
    assert findings["STATUS is silent, or fails with 50 or 51"].outcome == PASS
    assert findings["VERSION answers with the supported versions, needing no other variable"].outcome == PASS
    assert sleepers() == []


def test_every_case_is_judged_when_a_plugin_hangs_always(tmp_path):
    path = executable(tmp_path / "background", BACKGROUND)
    started = time.monotonic()
    with sandbox(path, {"type": "background"}, timeout_s=0.2) as subject:
        findings = examine(subject)
    assert time.monotonic() - started < 60
    assert findings[0].outcome == FAIL
    assert "did not let go of stdout" in findings[0].detail
    assert len(failed(findings)) > 15
    assert sleepers() == []


@pytest.mark.parametrize(("make", "words"), [(False, "missing"), (True, "not an executable")])
def test_it_is_said_at_once_when_there_is_no_executable(tmp_path, capsys, make, words):
    path = tmp_path / "plugin"
    if make:
        path.write_text("#!/bin/sh\n")
    (tmp_path / "conf").write_text(json.dumps({"type": "plugin"}))
    assert main(["conformance", str(path), "--conf", str(tmp_path / "conf")]) == 1
    assert capsys.readouterr().err == f"cnimeta: {path} is {words}: nothing to test\n"
    with pytest.raises(IoFailure, match=words), sandbox(str(path), {}):
        pass


@pytest.mark.parametrize("words", [["--bin-dir", "/a:/b", "--bin-dir", "c"], []])
def test_the_plugin_finds_its_delegates_when_folders_are_given(tmp_path, capsys, words):
    plugin, seen = tmp_path / "asks", tmp_path / "seen"
    plugin.write_text(f"#!/bin/sh\necho $CNI_PATH >> {seen}\nexit 1\n")
    plugin.chmod(0o755)
    (tmp_path / "conf").write_text('{"type": "asks"}')
    assert main(["conformance", str(plugin), "--conf", str(tmp_path / "conf"), *words]) == 1
    assert "FAIL" in capsys.readouterr().out.upper()
    said = {f"/a:/b:{os.path.abspath('c')}"} if words else {str(tmp_path)}
    assert {line for line in seen.read_text().split() if line} == said


STATELESS = """#!/bin/sh
conf=$(cat)
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}';;
ADD) printf '%s' "$conf" | sed -e 's/.*"prevResult"://' -e 's/}$//';;
esac
"""
MISSING = "CHECK fails, with a specific code, when nothing is there"
RUN_HERE = Path("/var/lib/cni/stub")


def test_a_plugin_is_not_failed_for_having_no_state_when_add_changes_nothing(tmp_path):
    with sandbox(executable(tmp_path / "stateless", STATELESS), {"type": "stateless"}) as subject:
        findings = {finding.rule: finding for finding in examine(subject)}
    for rule in (MISSING, "DEL works without prevResult", "GC frees what is not listed"):
        assert findings[rule].outcome == NOT_APPLICABLE
        assert "nothing to miss" in findings[rule].detail


def test_the_nodes_state_is_untouched_when_a_plugin_writes_there(tmp_path):
    with sandbox(executable(tmp_path / "stub", STUB), {"type": "stub"}) as subject:
        assert subject.call("ADD", subject.conf_for("1.1.0")).status == 0
        assert "/var/lib/cni/stub" in subject.footprint()
    assert not RUN_HERE.exists()


@pytest.mark.parametrize("text", ["#!/no/such/interpreter\n"])
def test_it_is_said_at_once_when_the_executable_cannot_be_started(tmp_path, text):
    with pytest.raises(IoFailure, match="cannot be started"), sandbox(executable(tmp_path / "p", text), {}):
        pass


def test_the_keys_of_maps_stay_when_others_get_a_capital():
    conf = {
        "sysctl": {"net.ipv4.conf.all.log_martians": "1"}, "capabilities": {"portMappings": True},
        "runtimeConfig": {"portMappings": [{"hostPort": 1}], "bandwidth": {"ingressRate": 1}},
        "ipam": {"ranges": [[{"subnet": "10.0.0.0/8"}]]}, "ranges": {"default": "1-2"},
    }  # fmt: skip
    assert shouted(conf) == {
        "Sysctl": {"net.ipv4.conf.all.log_martians": "1"}, "Capabilities": {"portMappings": True},
        "RuntimeConfig": {"PortMappings": [{"HostPort": 1}], "Bandwidth": {"IngressRate": 1}},
        "Ipam": {"Ranges": [[{"Subnet": "10.0.0.0/8"}]]}, "Ranges": {"default": "1-2"},
    }  # fmt: skip


def test_stderr_and_the_sentence_are_shown_in_each_format_when_a_rule_is_broken(tmp_path, capsys):
    path = executable(tmp_path / "loud", "#!/bin/sh\necho 'what <happened>' >&2\nexit 1\n")
    (tmp_path / "conf").write_text('{"type": "loud"}')
    words = ["conformance", path, "--conf", str(tmp_path / "conf"), "--format"]
    out = {}
    for form in ("text", "json", "junit"):
        assert main([*words, form]) == 1
        out[form] = capsys.readouterr().out
        assert "what" in out[form]
        assert "The value of cniVersion specified on input" in out[form]
    suite = ET.fromstring(out["junit"])
    cases = suite.findall("testcase")
    assert len(cases) == len(RULES) == len(json.loads(out["json"])) == int(suite.attrib["tests"])
    assert len(suite.findall("testcase/failure")) == int(suite.attrib["failures"]) > 10


def test_each_rule_is_a_test_when_pytest_is_asked_for_conformance(tmp_path):
    path = executable(tmp_path / "stateless", STATELESS)
    words = ["-q", "-rfs", "-p", "no:cacheprovider", f"--cni-plugin={path}", "--cni-timeout=10"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout
    passed, failing, skipped = (
        int(re.search(rf"(\d+) {word}", done.stdout).group(1)) for word in ("passed", "failed", "skipped")
    )
    assert passed + failing + skipped == len(RULES)
    assert "the specification: 4|Invalid necessary environment variables" in done.stdout
    assert "Traceback" not in done.stdout
    assert "nothing to miss" in done.stdout


def test_it_is_wrong_usage_when_pytest_is_asked_for_a_plugin_that_is_not_there(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--cni-plugin=nowhere"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode
    assert "nowhere" in done.stdout + done.stderr
