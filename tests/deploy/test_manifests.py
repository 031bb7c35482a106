"""deploy/: the overlays render, and say nothing that this version does not know."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cnimeta import __version__
from cnimeta.cli.main import build_parser

pytestmark = [pytest.mark.project, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = ("nftables", "iptables", "agent")
COMMANDS = ("/usr/lib/cnimeta/bin/cnimeta", "/opt/cnimeta/current/bin/cnimeta")


@pytest.fixture(scope="session")
def kubectl() -> str:
    return subprocess.run([ROOT / "scripts" / "kubectl"], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(params=OVERLAYS)
def rendered(request: pytest.FixtureRequest, kubectl: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [kubectl, "kustomize", DEPLOY / "overlays" / request.param], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")  # nor a word of what is deprecated
    return list(yaml.safe_load_all(done.stdout))


def one(rendered: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [item for item in rendered if item["kind"] == kind]
    return found


def containers(rendered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spec = one(rendered, "DaemonSet")["spec"]["template"]["spec"]
    return [*spec["initContainers"], *spec["containers"]]


def test_every_overlay_renders_and_its_settings_are_mounted(rendered: list[dict[str, Any]]) -> None:
    settings = one(rendered, "ConfigMap")
    assert tomllib.loads(settings["data"]["config.toml"])["portmap"]["backend"] in ("nftables", "iptables")
    volumes = one(rendered, "DaemonSet")["spec"]["template"]["spec"]["volumes"]
    names = {volume["name"]: volume for volume in volumes}
    assert names["settings"]["configMap"]["name"] == settings["metadata"]["name"]
    for container in containers(rendered):
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(names)


def test_every_command_is_known_to_the_parser_and_the_image_is_of_this_version(rendered: list[dict[str, Any]]) -> None:
    for container in containers(rendered):
        assert container["image"] == f"cnimeta:{__version__}"
        probes = [container[name]["exec"]["command"] for name in container if name.endswith("Probe")]
        for words in [[*container["command"], *container.get("args", [])], *probes]:
            if words[0] == "/bin/sh":
                continue
            assert words[0] in COMMANDS
            assert build_parser().parse_args(words[1:]).run


def test_rights_are_the_least(rendered: list[dict[str, Any]]) -> None:
    assert one(rendered, "ClusterRole")["rules"] == [
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]}
    ]
    for container in containers(rendered):
        rights = container["securityContext"]
        if container["name"] == "agent":
            assert rights == {"privileged": True}
        else:
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["readOnlyRootFilesystem"] is True


def test_the_agent_is_probed_and_its_launchers_are_native(rendered: list[dict[str, Any]]) -> None:
    found = {container["name"]: container for container in containers(rendered)}
    if "agent" not in found:
        assert not one(rendered, "DaemonSet")["spec"]["template"]["spec"].get("hostPID")
        return
    assert {"readinessProbe", "livenessProbe", "startupProbe"} <= set(found["agent"])
    deploys = [one for one in containers(rendered) if one["name"] == "deploy"]
    assert [("--native" in one["args"]) for one in deploys] == [True, True]


@pytest.mark.parametrize("unit", sorted(path.name for path in DEPLOY.glob("*.service")))
def test_a_unit_starts_a_command_that_is_known(unit: str) -> None:
    (start,) = re.findall(r"^ExecStart=(.+)$", (DEPLOY / unit).read_text(), re.MULTILINE)
    program, *words = start.split()
    assert program == "/opt/cnimeta/current/bin/cnimeta"
    assert build_parser().parse_args(words).run


def test_the_containerfile_names_no_registry() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("FROM")] == ["${BUILD}", "${BASE}"]
    copied = [word for line in lines if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
