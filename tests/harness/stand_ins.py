"""Programs that stand in for network plugins which no package registry has: what a runtime sees of them is theirs.

Each writes a configuration as the project's plugin does and lets a reference plugin do the work, so the addresses,
links and traffic are real.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.stage import DEBIAN_PLUGINS

if TYPE_CHECKING:
    from demo.stage import Stage

_EXAMPLES = Path(__file__).parents[2] / "examples"

_NETWORK = """#!/usr/bin/python3 -I
# Behaves as {name} does towards a runtime.
import json, os, subprocess, sys
conf = json.load(sys.stdin)
inner = {inner}
given = conf.get("ipam", {{}})
if given.get("type") == "host-local" and given.get("ranges"):  # from flannel
    inner["ipam"] = given
if conf.get("include_default_routes"):
    inner["ipam"].setdefault("routes", []).append({{"dst": "0.0.0.0/0"}})
inner.update({{key: conf[key] for key in ("cniVersion", "name", "prevResult") if key in conf}})
done = subprocess.run(["{plugins}/" + inner["type"]], input=json.dumps(inner).encode(), stdout=subprocess.PIPE)
answer = done.stdout.decode()
if os.environ["CNI_COMMAND"] == "ADD" and done.returncode == 0:
    result = json.loads(answer)
    if {shape!r} in ("host end", "addresses"):  # no link of the container is named, as by calico; none at all, as by weave
        ends = [link for link in result.pop("interfaces") if not link.get("sandbox")]
        result.update({{"interfaces": ends}} if {shape!r} == "host end" else {{}})
        for ip in result["ips"]:
            ip.pop("interface", None)
    answer = json.dumps(result)
print(answer)
sys.exit(done.returncode)
"""

_FLANNEL = """#!{python} -I
# flannel's plugin: the example of the SDK that delegates the way it does, under its name and with the folders of a test.
import sys
sys.path.insert(0, "{examples}/plugins")
from subnet_env import SubnetEnv, main


class Flannel(SubnetEnv):
    name = "flannel"

    def _subnet_file(self, request):
        return "{folder}/subnet.env"

    def _folder(self, request):
        return "{folder}"


main(Flannel())
"""

_MULTUS = """#!{python} -I
# Attaches the default network, the first of its delegates, and no other: what Multus does for a Pod without annotations.
import json, os, subprocess, sys
conf = json.load(sys.stdin)
verb = os.environ["CNI_COMMAND"]
if verb == "VERSION":
    sys.exit(print(json.dumps({{"cniVersion": "1.0.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0"]}})))
path = "{folder}/default-network.conflist"
os.makedirs("{folder}", exist_ok=True)
with open(path, "w") as file:
    json.dump(conf["delegates"][0], file)
words = ["run", verb.lower(), "--conflist", path, "--container-id", os.environ["CNI_CONTAINERID"],
         "--netns", os.environ.get("CNI_NETNS", ""), "--args", os.environ.get("CNI_ARGS", ""),
         "--capability-args", json.dumps(conf.get("runtimeConfig", {{}})), "--bin-dir", os.environ["CNI_PATH"],
         "--cache-dir", "{folder}"]
done = subprocess.run(["{cnimeta}", *words], stdout=subprocess.PIPE)
sys.stdout.buffer.write(done.stdout)
sys.exit(done.returncode)
"""


def stand_in(
    stage: Stage, name: str, inner: dict[str, Any], subnet: str, *, shape: str = "", default_route: bool = True
) -> None:
    """Put a network plugin into the stage's folder: `inner` is what the reference plugin is given, but for its IPAM."""
    ipam: dict[str, Any] = {"type": "host-local", "subnet": subnet, "dataDir": str(stage.state / "host-local")}
    if default_route and inner["type"] == "ptp":
        ipam["routes"] = [{"dst": "0.0.0.0/0"}]
    text = _NETWORK.format(name=name, inner={**inner, "ipam": ipam}, plugins=DEBIAN_PLUGINS, shape=shape)
    _write(stage.bin / name, text)


def flannel(stage: Stage, subnet: str) -> Path:
    """Put flannel's plugin into the stage's folder, and what its daemon leaves; the folder that it keeps its records in."""
    folder = stage.state / "flannel"
    folder.mkdir(parents=True)
    (folder / "subnet.env").write_text(
        f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        encoding="utf-8",
    )
    _write(stage.bin / "flannel", _FLANNEL.format(python=sys.executable, examples=_EXAMPLES, folder=folder))
    return folder


def multus(stage: Stage) -> None:
    """Put Multus into the stage's folder."""
    program = os.path.join(os.path.dirname(sys.executable), "cnimeta")
    folder = stage.state / "multus"
    _write(stage.bin / "multus", _MULTUS.format(python=sys.executable, folder=folder, cnimeta=program))


def _write(program: Path, text: str) -> None:
    program.write_text(text, encoding="utf-8")
    program.chmod(0o755)


def host_ports(stage: Stage, conflist: Path, container_id: str) -> dict[str, tuple[int, str]]:
    """{"80/tcp": (host port, range)} as `cnimeta ports list` has it."""
    listed = json.loads(stage.cnimeta("ports", "list", "--conf", str(conflist), "--json"))
    return {
        f"{found['containerPort']}/{found['protocol']}": (found["hostPort"], found["range"])
        for found in listed
        if found["containerID"] == container_id
    }
