"""`cnimeta upgrade`, `rollback` and `deploy`: a version beside the other, then the switch; a kill anywhere leaves a node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from standalone_kit import NAMES, Node, folder_of

from cnimeta.errors import CniError, InvalidEnvironment, InvalidNetworkConfig, IoFailure
from cnimeta.node.deployment import MARK, Placed, credentials, put, settings
from cnimeta.node.versions import Versions, command

pytestmark = [pytest.mark.project, pytest.mark.timeout(600)]

EVERY = os.environ.get("CNIMETA_EVERY") == "1"
STEPS = {
    "rename": range(1, 10) if EVERY else (1, 5),
    "symlink": (1, 2) if EVERY else (1,),
    "fsync": range(1, 9) if EVERY else (),
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("made")
    return {version: folder_of(place, version) for version in ("0.1.7", "0.2.0")}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_launchers_are_of_the_new_version_and_then_of_the_old_when_it_is_rolled_back(
    node: Node, made: dict[str, Path]
) -> None:
    node.run(made["0.1.7"], "upgrade", str(made["0.1.7"]))
    assert node.versions() == {"0.1.7"}
    (node.bin / "bandwidth").unlink()
    node.run(made["0.2.0"], "upgrade", str(made["0.2.0"]))
    assert sorted(path.name for path in node.bin.iterdir()) == ["hostport_alloc", "portmap"]  # what was there
    assert {node.version_of(name) for name in ("hostport_alloc", "portmap")} == {"0.2.0"}
    assert os.readlink(node.root / "current") == "0.2.0"
    done = node.run(node.root / "current", "rollback")
    assert f"{node.root}/current: 0.1.7, before: 0.2.0" in done.stdout
    assert {node.version_of(name) for name in ("hostport_alloc", "portmap")} == {"0.1.7"}
    assert (os.readlink(node.root / "current"), os.readlink(node.root / "previous")) == ("0.1.7", "0.2.0")
    assert not [path for path in node.root.iterdir() if path.name.startswith((".new", ".old"))]


def test_nothing_is_switched_when_the_version_refuses_a_configuration_that_is_served(
    node: Node, made: dict[str, Path], tmp_path: Path
) -> None:
    node.run(made["0.1.7"], "upgrade", str(made["0.1.7"]))
    strict = tmp_path / "strict"
    shutil.copytree(made["0.2.0"], strict)
    told = json.dumps([{"what": "10-net.conflist", "state": "fail", "message": "a key that is gone"}])
    start = strict / "bin" / "cnimeta"
    start.write_text(
        start.read_text().replace("\nhere", f"\n[ \"$1\" != validate ] || {{ echo '{told}'; exit 1; }}\nhere")
    )
    done = node.run(made["0.2.0"], "upgrade", str(strict), check=False)
    assert done.returncode == 1
    assert "a key that is gone; --force goes on" in done.stderr
    assert node.versions() == {"0.1.7"}
    node.run(made["0.2.0"], "upgrade", str(strict), "--force")
    assert node.versions() == {"0.2.0"}


# --- kill at each step -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "number"), [(call, number) for call, numbers in STEPS.items() for number in numbers])
def test_a_node_works_when_deploy_was_killed(node: Node, made: dict[str, Path], call: str, number: int) -> None:
    """The number-th such call of any of its processes is the last one."""
    node.run(made["0.1.7"], "upgrade", str(made["0.1.7"]))
    words = node.words("deploy")
    environ = {"PATH": os.environ["PATH"], "CNIMETA_CONFIG": str(node.settings)}
    inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}")
    run = [str(made["0.2.0"] / "bin" / "cnimeta"), *words, "--source", str(made["0.2.0"])]
    run += ["--own", "--", "--data-dir", str(node.data)]
    strace = ["strace", "-f", "-qqq", "-o", "/dev/null", *inject]
    subprocess.run([*strace, *run], check=False, capture_output=True, env=environ, timeout=300)
    assert node.versions() <= {"0.1.7", "0.2.0"}  # each answers
    for path in node.nets.glob("*.conflist"):
        types = [one["type"] for one in json.loads(path.read_text())["plugins"]]
        assert path.name == "10-net.conflist" or types == ["hostport_alloc"]
    done = subprocess.run(run, check=False, capture_output=True, text=True, env=environ, timeout=300)
    assert done.returncode == 0, done.stderr
    assert node.versions() == {"0.2.0"}
    assert os.readlink(node.root / "current") == "0.2.0"
    assert (node.nets / "00-cnimeta.conflist").exists()


# --- the folder of versions ------------------------------------------------------------------------------


def fake(folder: Path, version: str, digest: str = "a1") -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "cnimeta").write_text("")
    (folder / "standalone.json").write_text(json.dumps({"version": version, "digest": digest}))
    return folder


def test_a_version_is_placed_once_and_another_build_of_it_gets_a_name_of_its_own(tmp_path: Path) -> None:
    versions = Versions(str(tmp_path / "root"))
    one, other = fake(tmp_path / "one", "1.0"), fake(tmp_path / "other", "1.0", "b2" * 9)
    with versions.locked():
        first = versions.place(str(one))
        inode = os.stat(command(first)).st_ino
        assert versions.place(str(one)) == first
        assert os.stat(command(first)).st_ino == inode
        assert versions.place(str(other), link=True) == f"{versions.root}/1.0+b2b2b2b2"
        assert os.stat(command(f"{versions.root}/1.0+b2b2b2b2")).st_nlink == 2
        with tarfile.open(tmp_path / "two.tar.gz", "w:gz") as tar:
            (fake(tmp_path / "two", "2.0") / "bin" / "cnimeta").chmod(0o6777)
            tar.add(tmp_path / "two", "two")
        assert versions.place(str(tmp_path / "two.tar.gz")) == f"{versions.root}/2.0"
        assert os.stat(command(f"{versions.root}/2.0")).st_mode & 0o7777 == 0o755
    assert sorted(versions.names()) == ["1.0", "1.0+b2b2b2b2", "2.0"]


def test_what_a_killed_upgrade_left_goes_with_the_next(tmp_path: Path) -> None:
    versions = Versions(str(tmp_path / "root"))
    with versions.locked():
        fake(tmp_path / "root" / ".new-77", "1.0")
        fake(tmp_path / "root" / ".old-0.9", "0.9")
        (tmp_path / "root" / ".current-77").symlink_to("nowhere")
        versions.place(str(fake(tmp_path / "one", "1.0")))
    assert sorted(os.listdir(versions.root)) == [".lock", "1.0"]


def test_the_current_the_previous_and_what_runs_stay_when_old_versions_go(tmp_path: Path) -> None:
    versions = Versions(str(tmp_path / "root"))
    with versions.locked():
        for number in range(6):
            versions.place(str(fake(tmp_path / str(number), f"1.{number}")))
            versions.point(f"1.{number}")
            os.utime(tmp_path / "root" / f"1.{number}", (number, number))
        shutil.copy("/bin/sleep", tmp_path / "root" / "1.0" / "bin" / "sleep")
        running = subprocess.Popen([tmp_path / "root" / "1.0" / "bin" / "sleep", "100"])
        try:
            assert versions.prune(1) == ["1.1", "1.2", "1.3"]
        finally:
            running.kill()
            running.wait()
    assert versions.names() == ["1.0", "1.4", "1.5"]
    assert (versions.previous, versions.current) == ("1.4", "1.5")


@pytest.mark.parametrize("name", ["..", "../x", "", "current", "9.9", ".new-1", "a/b"])
def test_a_version_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, name: str) -> None:
    versions = Versions(str(tmp_path))
    fake(tmp_path / "1.0", "1.0")
    (tmp_path / "current").symlink_to("1.0")
    with pytest.raises(IoFailure, match=r"has no version .*\(there are: 1\.0\)"):
        versions.folder(name)


@pytest.mark.parametrize(
    "body", ["", "{", "[]", '{"version": "../x", "digest": "a"}', '{"version": "1", "digest": "/"}']
)
def test_what_is_no_standalone_folder_is_refused(tmp_path: Path, body: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "standalone.json").write_text(body)
    versions = Versions(str(tmp_path / "root"))
    with versions.locked(), pytest.raises(CniError):
        versions.place(str(tmp_path / "one"))
    assert versions.names() == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../escaped", tarfile.REGTYPE),
        ("one/../../../escaped", tarfile.REGTYPE),
        ("/tmp/escaped", tarfile.REGTYPE),
        ("one/link", tarfile.SYMTYPE),
        ("one/link", tarfile.LNKTYPE),
        ("one/pipe", tarfile.FIFOTYPE),
        ("one/device", tarfile.CHRTYPE),
    ],
)
def test_nothing_leaves_the_folder_when_an_archive_is_hostile(tmp_path: Path, name: str, kind: bytes) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "../.."
        tar.addfile(member)
    versions = Versions(str(tmp_path / "root"))
    with versions.locked(), pytest.raises(IoFailure, match="cannot be unpacked"):
        versions.place(str(tmp_path / "bad.tar"))
    assert not (tmp_path / "escaped").exists()
    assert os.listdir(versions.root) == [".lock"]


# --- settings and credentials ----------------------------------------------------------------------------


def test_files_are_written_once_and_somebody_elses_settings_stay(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "config.toml"
    file = settings(b'[portmap]\nbackend = "iptables"\n', str(path))
    assert list(put([file])) == [f"{path}: written"]
    assert list(put([file])) == []
    path.write_text("[portmap]\n")
    with pytest.raises(IoFailure, match="was not written by `cnimeta deploy`"):
        list(put([file]))
    path.write_text(f"{MARK}[portmap]\n")
    assert list(put([file])) == [f"{path}: written"]
    with pytest.raises(InvalidNetworkConfig):
        settings(b"[portmap")


def test_a_kubeconfig_names_the_server_and_the_token_is_only_roots(tmp_path: Path) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    files = credentials(b"secret", b"authority", environ, str(tmp_path))
    list(put(files))
    body = json.loads((tmp_path / "kubeconfig").read_text())
    assert body["clusters"][0]["cluster"]["server"] == "https://[fd00::1]:6443"
    assert body["users"][0]["user"]["tokenFile"] == f"{tmp_path}/token"
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"token": 0o600, "ca.crt": 0o644, "kubeconfig": 0o600}
    assert list(put([Placed(f"{tmp_path}/token", b"renewed", 0o600)])) == [f"{tmp_path}/token: written"]


@pytest.mark.parametrize("host", ["", "a b", "x/y", "u@h", 'q"'])
def test_a_server_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(InvalidEnvironment):
        credentials(b"", b"", {"KUBERNETES_SERVICE_HOST": host})


def test_every_plugin_has_a_launcher_when_the_folder_was_empty(node: Node, made: dict[str, Path]) -> None:
    node.run(made["0.1.7"], "upgrade", str(made["0.1.7"]))
    assert sorted(path.name for path in node.bin.iterdir()) == list(NAMES)
