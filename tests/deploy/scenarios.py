"""What is shipped, built and installed for real: minutes each, so `make deploy-test` runs them, not `make test`.

A clean root file system has a shell (busybox), this machine's C library, and nothing else: no Python, no nft.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.testing.netns import Namespace

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
APPLETS = ("sh", "cat", "dirname", "readlink", "ls", "rm", "rmdir", "echo", "true", "mkdir")


def made(*words: str, epoch: str = "1700000000") -> list[Path]:
    environ = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True, env=environ, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CNIMETA_STANDALONE names one that is there already."""
    given = os.environ.get("CNIMETA_STANDALONE")
    return Path(given) if given else made("scripts/standalone.py", str(tmp_path_factory.mktemp("one")))[0]


@pytest.fixture(scope="module")
def package(standalone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("scripts/deb.py", str(standalone), str(tmp_path_factory.mktemp("deb")))[0]


def clean_root(folder: Path) -> Path:
    """A root file system without Python."""
    for name in (
        "bin",
        "proc",
        "dev",
        "sys",
        "tmp",
        "etc",
        "opt",
        "var/lib/dpkg/info",
        "var/lib/dpkg/updates",
        "var/lib/cni",
    ):
        (folder / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", folder / "bin" / "busybox")
    for applet in APPLETS:
        (folder / "bin" / applet).symlink_to("busybox")
    told = subprocess.check_output(["ldd", "/bin/true"], text=True) + subprocess.check_output(
        ["ldd", "/usr/bin/python3"], text=True
    )
    for line in told.splitlines():
        for word in line.split():
            if word.startswith("/") and Path(word).name.startswith(("libc.", "libm.", "ld-")):
                place = folder / word.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, place)
    for name in ("libresolv.so.2", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1"):
        found = next(Path("/lib").glob(f"*/{name}"), None)
        if found is not None:
            shutil.copy(found, folder / "lib" / found.parent.name / name)
    version = subprocess.check_output(["dpkg-query", "-W", "-f", "${Version}", "libc6"], text=True)
    entry = f"Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nMaintainer: x\nVersion: {version}\nDescription: x\n"
    (folder / "var/lib/dpkg/status").write_text(entry)
    return folder


class Rooted:
    """Commands in a root file system, in the network namespace that `prefix` enters."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self, *words: str, check: bool = True, prefix: tuple[str, ...] = (), stdin: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """A program in there."""
        return self._mounted(["chroot", str(self.root), *words], check, prefix, stdin, environ)

    def dpkg(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """This machine's dpkg, on its files and with its scripts."""
        return self._mounted(["dpkg", f"--root={self.root}", *words], check, (), "", {})

    def _mounted(
        self, words: list[str], check: bool, prefix: tuple[str, ...], stdin: str, environ: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        mounts = "".join(f"mount --rbind /{name} {self.root}/{name} && " for name in ("proc", "dev", "sys"))
        command = [*prefix, "unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh", *words]
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environ}
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, input=stdin, env=environ, timeout=600
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done


@pytest.fixture(scope="module")
def installed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Rooted:
    rooted = Rooted(clean_root(tmp_path_factory.mktemp("root")))
    told = rooted.dpkg("-i", str(package))
    assert "not switched" not in told.stderr, told.stderr
    return rooted


def test_two_builds_are_the_same_bytes(standalone: Path, package: Path, tmp_path: Path) -> None:
    folder, archive = made("scripts/standalone.py", str(tmp_path))
    first = {path.relative_to(standalone): path.read_bytes() for path in standalone.rglob("*") if path.is_file()}
    second = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert sorted(name for name in first | second if first.get(name) != second.get(name)) == []
    assert archive.stat().st_size
    (other,) = made("scripts/deb.py", str(folder), str(tmp_path))
    assert other.read_bytes() == package.read_bytes()


def test_a_package_brings_working_plugins_to_a_node_without_python(
    installed: Rooted, make_netns: Callable[[str], Namespace]
) -> None:
    assert not (installed.root / "usr/bin/python3").exists()
    assert os.readlink(installed.root / "opt/cnimeta/current") == "0.1.0"
    node, container = make_netns("node"), make_netns("container")
    inside = ("nsenter", f"--net={node.path}")
    found = json.loads(installed.run("/usr/bin/cnimeta", "doctor", "--json", prefix=inside, check=False).stdout)
    states = {one["what"]: one["state"] for one in found}
    assert {states[f"launcher {name}"] for name in ("portmap", "bandwidth", "hostport_alloc")} == {"ok"}
    assert "fail" not in {states["nftables"], states["python"]}, found  # the nft program is missing: a warning
    conf = {
        "cniVersion": "1.0.0", "name": "net", "type": "hostport_alloc", "expose": ["80/tcp"],
        "ranges": {"default": "20000-20009"}, "portmap": {"type": "portmap", "snat": False, "backend": "nftables"},
        "prevResult": {"cniVersion": "1.0.0", "interfaces": [], "ips": [{"address": "10.1.0.2/24"}]},
    }  # fmt: skip
    environ = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}

    def call(verb: str) -> subprocess.CompletedProcess[str]:
        path = f"/proc/{os.getpid()}/root{container.path}"
        return installed.run(
            "/opt/cni/bin/hostport_alloc",
            prefix=inside,
            stdin=json.dumps(conf),
            CNI_COMMAND=verb,
            CNI_NETNS=path,
            **environ,
        )

    call("ADD")
    listed = json.loads(installed.run("/usr/bin/cnimeta", "ports", "list", "--json", prefix=inside).stdout)
    assert [one["containerPort"] for one in listed] == [80]
    rules = node.run("nft", "list", "ruleset").stdout
    assert str(listed[0]["hostPort"]) in rules
    call("CHECK")
    call("DEL")
    call("DEL")
    assert json.loads(installed.run("/usr/bin/cnimeta", "ports", "list", "--json", prefix=inside).stdout) == []
    assert str(listed[0]["hostPort"]) not in node.run("nft", "list", "ruleset").stdout


def test_a_package_is_not_removed_while_a_network_needs_it_and_leaves_nothing(installed: Rooted) -> None:
    networks = installed.root / "etc/cni/net.d"
    networks.mkdir(parents=True)
    conf = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "portmap"}]}
    (networks / "10-net.conflist").write_text(json.dumps(conf))
    refused = installed.dpkg("-r", "cnimeta", check=False)
    assert refused.returncode != 0
    assert "still needed: portmap by 10-net.conflist" in refused.stderr + refused.stdout
    assert installed.run("/opt/cni/bin/portmap", CNI_COMMAND="VERSION").returncode == 0
    (networks / "10-net.conflist").unlink()
    installed.dpkg("-r", "cnimeta")
    assert list((installed.root / "opt/cni/bin").iterdir()) == []
    assert not (installed.root / "opt/cnimeta").exists()


def test_the_image_has_the_command_on_a_base_with_a_shell_and_a_c_library(standalone: Path, tmp_path: Path) -> None:
    """The last stage of the Containerfile, as it is. The first needs an image of Debian and an index: its steps are those
    of scripts/standalone.py, which the other tests run.
    """
    text = (ROOT / "deploy" / "Containerfile").read_text()
    first, last = text.index("FROM ${BUILD}"), text.index("FROM ${BASE}")
    file = tmp_path / "Containerfile"
    file.write_text(f"{text[:first]}FROM scratch AS build\nCOPY . /cnimeta\n{text[last:]}")
    base = clean_root(tmp_path / "base")
    subprocess.run(["tar", "-C", base, "-cf", tmp_path / "base.tar", "."], check=True)
    podman = [
        "podman",
        "--root",
        str(tmp_path / "images"),
        "--runroot",
        str(tmp_path / "run"),
        "--storage-driver",
        "vfs",
    ]
    try:
        subprocess.run([*podman, "import", "-q", tmp_path / "base.tar", "localhost/base:1"], check=True)
        given = ["--build-arg", "BASE=localhost/base:1", "--build-arg", "BUILD=none", "-f", file]
        subprocess.run(
            [*podman, "build", "-q", "--isolation", "chroot", *given, "-t", "localhost/cnimeta:1", standalone],
            check=True,
        )
        asked = [*podman, "image", "mount", "localhost/cnimeta:1"]
        place = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        assert Rooted(Path(place)).run("/usr/lib/cnimeta/bin/cnimeta", "version").stdout.startswith("cnimeta ")
        size = sum(path.lstat().st_size for path in Path(place).rglob("*"))
        print(f"image: {size / 1e6:.0f} MB")
    finally:
        subprocess.run([*podman, "image", "unmount", "--all"], check=False, capture_output=True)
