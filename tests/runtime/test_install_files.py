"""`cnimeta install` and `uninstall` on a folder: foreign files, backups, upgrades, interruptions."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cnimeta.cli.install import BACKUP_SUFFIX, install, uninstall
from cnimeta.cli.main import main
from cnimeta.errors import IoFailure
from cnimeta.plugin import launcher, registry

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.project

NAMES = ["bandwidth", "hostport_alloc", "portmap"]
PORTMAP = registry.installed()["portmap"]
FOREIGN = b"\x7fELF not ours"


def content(folder: Path) -> dict[str, bytes]:
    """The files by name; launchers of this installation as `launcher`."""
    found = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        found[path.name] = b"launcher" if launcher.read_target(str(path)) else data
    return found


def put(path: Path, data: bytes = FOREIGN) -> None:
    path.write_bytes(data)
    path.chmod(0o755)


def test_three_launchers_for_everybody_are_there_when_the_folder_was_missing(tmp_path: Path) -> None:
    folder = tmp_path / "opt" / "cni" / "bin"
    assert install(str(folder), NAMES) == [f"{folder}/{name}: installed" for name in NAMES]
    assert content(folder) == dict.fromkeys(NAMES, b"launcher")
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o755}


def test_nothing_is_written_when_it_is_installed_already(tmp_path: Path) -> None:
    install(str(tmp_path), NAMES)
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert install(str(tmp_path), NAMES) == [f"{tmp_path}/{name}: installed already" for name in NAMES]
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("damage", ["content", "mode", "link"])
def test_our_own_launcher_is_renewed_when_it_is_another_or_damaged(tmp_path: Path, damage: str) -> None:
    install(str(tmp_path), ["portmap"])
    path = tmp_path / "portmap"
    if damage == "content":  # that of an older installation
        path.write_text(path.read_text().replace(launcher.package_folder(), "/opt/old/cnimeta"))
    elif damage == "mode":
        path.chmod(0o600)
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to("elsewhere")
    assert install(str(tmp_path), ["portmap"]) == [f"{path}: installed"]
    assert content(tmp_path)["portmap"] == b"launcher"
    assert not path.is_symlink()
    assert not (tmp_path / f"portmap{BACKUP_SUFFIX}").exists()


def test_nothing_is_written_when_a_foreign_file_is_in_the_way(tmp_path: Path) -> None:
    put(tmp_path / "portmap")
    with pytest.raises(IoFailure, match=f"not written by cnimeta: {tmp_path}/portmap; --replace keeps a backup"):
        install(str(tmp_path), NAMES)
    assert content(tmp_path) == {"portmap": FOREIGN}


def test_the_ways_out_are_named_when_foreign_files_are_in_the_way(tmp_path: Path) -> None:
    """An ordinary node has the portmap and the bandwidth of its distribution."""
    for name in ("portmap", "bandwidth"):
        put(tmp_path / name)
    with pytest.raises(IoFailure, match="--replace keeps a backup and replaces; --only hostport_alloc leaves them"):
        install(str(tmp_path), NAMES)
    with pytest.raises(IoFailure) as caught:
        install(str(tmp_path), ["portmap"])
    assert "--only" not in caught.value.msg
    assert install(str(tmp_path), ["hostport_alloc"]) == [f"{tmp_path}/hostport_alloc: installed"]


def test_no_unfinished_file_is_left_when_a_launcher_cannot_be_written(tmp_path: Path) -> None:
    install(str(tmp_path), ["portmap"])
    (tmp_path / "portmap").chmod(0o600)
    (tmp_path / f".tmp-{os.getpid()}-portmap").mkdir()
    with pytest.raises(IsADirectoryError):
        install(str(tmp_path), ["portmap"])
    assert content(tmp_path / f".tmp-{os.getpid()}-portmap") == {}
    assert launcher.read_target(str(tmp_path / "portmap")) is not None


def test_the_file_comes_back_when_it_was_replaced(tmp_path: Path) -> None:
    put(tmp_path / "portmap")
    inode = (tmp_path / "portmap").stat().st_ino
    lines = install(str(tmp_path), NAMES, replace=True)
    assert f"{tmp_path}/portmap: the file that was there is kept as portmap{BACKUP_SUFFIX}" in lines
    assert content(tmp_path) == {**dict.fromkeys(NAMES, b"launcher"), f"portmap{BACKUP_SUFFIX}": FOREIGN}
    assert install(str(tmp_path), NAMES)  # no --replace needed for our own
    assert f"{tmp_path}/portmap: restored" in uninstall(str(tmp_path), NAMES)
    assert content(tmp_path) == {"portmap": FOREIGN}
    assert (tmp_path / "portmap").stat().st_ino == inode
    assert os.access(tmp_path / "portmap", os.X_OK)


def test_the_newest_file_comes_back_when_a_package_overwrote_the_launcher(tmp_path: Path) -> None:
    put(tmp_path / "portmap", b"version 1")
    install(str(tmp_path), ["portmap"], replace=True)
    put(tmp_path / "portmap", b"version 2")
    install(str(tmp_path), ["portmap"], replace=True)
    put(tmp_path / "portmap", b"version 2")  # and again, as a DaemonSet does at each start
    install(str(tmp_path), ["portmap"], replace=True)
    kept = {f"portmap{BACKUP_SUFFIX}": b"version 2", f"portmap{BACKUP_SUFFIX}.1": b"version 1"}
    assert content(tmp_path) == {"portmap": b"launcher", **kept}
    uninstall(str(tmp_path), ["portmap"])
    assert content(tmp_path)["portmap"] == b"version 2"


def test_a_link_is_kept_as_a_link_when_it_is_replaced(tmp_path: Path) -> None:
    put(tmp_path / "target")
    (tmp_path / "portmap").symlink_to("target")
    for _ in range(2):
        install(str(tmp_path), ["portmap"], replace=True)
        uninstall(str(tmp_path), ["portmap"])
        assert os.readlink(tmp_path / "portmap") == "target"
    (tmp_path / "target").unlink()  # now it leads nowhere
    with pytest.raises(IoFailure, match="not written by cnimeta"):
        install(str(tmp_path), ["portmap"])
    assert (tmp_path / "portmap").is_symlink()


def test_the_first_file_is_never_missing_when_it_is_replaced(tmp_path: Path) -> None:
    """Kill after each step of --replace: the folder always has a working `portmap`, and the backup is not lost."""
    put(tmp_path / "portmap")
    os.link(tmp_path / "portmap", tmp_path / f"portmap{BACKUP_SUFFIX}")  # killed between the backup and the launcher
    install(str(tmp_path), ["portmap"], replace=True)
    assert content(tmp_path) == {"portmap": b"launcher", f"portmap{BACKUP_SUFFIX}": FOREIGN}
    (tmp_path / "portmap").unlink()  # and when somebody removed the launcher
    assert uninstall(str(tmp_path), ["portmap"]) == [f"{tmp_path}/portmap: restored"]
    assert content(tmp_path) == {"portmap": FOREIGN}


def test_a_foreign_file_stays_when_it_is_uninstalled(tmp_path: Path) -> None:
    put(tmp_path / "portmap")
    assert uninstall(str(tmp_path), NAMES) == [f"{tmp_path}/portmap: not written by cnimeta, left alone"]
    assert uninstall(str(tmp_path / "missing"), NAMES) == []
    assert content(tmp_path) == {"portmap": FOREIGN}


def test_nothing_is_left_when_it_is_uninstalled_twice(tmp_path: Path) -> None:
    install(str(tmp_path), NAMES)
    assert uninstall(str(tmp_path), NAMES) == [f"{tmp_path}/{name}: removed" for name in NAMES]
    assert uninstall(str(tmp_path), NAMES) == []
    assert content(tmp_path) == {}


def test_only_the_named_plugins_are_touched_when_some_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bin-dir", str(tmp_path), "--only", "portmap", "--only", "bandwidth"]
    assert main(["install", *words]) == 0
    assert sorted(content(tmp_path)) == ["bandwidth", "portmap"]
    nothing = ["--net-dir", str(tmp_path / "none")]
    assert main(["uninstall", "--bin-dir", str(tmp_path), "--only", "bandwidth", *nothing]) == 0
    assert sorted(content(tmp_path)) == ["portmap"]
    assert "bandwidth: removed" in capsys.readouterr().out


def test_status_1_and_a_line_come_out_when_it_cannot_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "portmap")
    (tmp_path / "bandwidth").mkdir()
    assert main(["install", "--bin-dir", str(tmp_path), "--only", "portmap"]) == 1
    assert main(["install", "--bin-dir", str(tmp_path), "--only", "bandwidth", "--replace"]) == 1
    assert main(["install", "--bin-dir", str(tmp_path / "portmap")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["cnimeta"] * 3
    assert "--replace" in lines[0]
    assert "folders are in the way" in lines[1]
    assert "File exists" in lines[2]


# --- the launchers ---------------------------------------------------------------------------------------


def version_of(path: Path, **options: object) -> str:
    done = subprocess.run(
        [str(path)], check=False, capture_output=True, text=True, env={"CNI_COMMAND": "VERSION"}, timeout=30, **options
    )  # type: ignore[call-overload]
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_a_launcher_answers_when_the_environment_is_empty_and_the_folder_anywhere(tmp_path: Path, name: str) -> None:
    install(str(tmp_path), [name])
    for cwd in ("/", "/proc/self", str(tmp_path)):
        assert '"supportedVersions"' in version_of(tmp_path / name, cwd=cwd)
    done = subprocess.run([str(tmp_path / name)], check=False, capture_output=True, text=True, env={}, cwd="/")
    assert done.returncode == 0
    assert done.stdout == ""
    assert f"CNI plugin {name}" in done.stderr


def test_python_variables_and_modules_beside_it_change_nothing_when_a_launcher_starts(tmp_path: Path) -> None:
    install(str(tmp_path), ["portmap"])
    for name in ("os.py", "json.py", "cnimeta.py", "sitecustomize.py"):
        (tmp_path / name).write_text("raise SystemExit('hijacked')")
    environ = {"CNI_COMMAND": "VERSION", "PYTHONPATH": str(tmp_path), "PYTHONHOME": "/none", "PYTHONSTARTUP": "/x"}
    done = subprocess.run([str(tmp_path / "portmap")], check=False, capture_output=True, env=environ, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("closed", ["2>&-", "</dev/null 2>&-", "<&-", "<&- 2>&-"])
def test_a_launcher_answers_when_a_stream_is_closed(tmp_path: Path, closed: str) -> None:
    install(str(tmp_path), ["portmap"])
    done = subprocess.run(
        ["sh", "-c", f"CNI_COMMAND=VERSION exec {tmp_path}/portmap {closed}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert '"supportedVersions"' in done.stdout


@pytest.mark.parametrize("folder", ["with space", "x" * 120, 'ünïcode and $HOME `id` "quote"'])
def test_the_shell_starts_the_interpreter_when_its_path_does_not_fit_the_first_line(
    tmp_path: Path, folder: str
) -> None:
    place = tmp_path / folder
    place.mkdir()
    interpreter = place / "python"
    interpreter.symlink_to(os.path.realpath(sys.executable))
    text = launcher.render(PORTMAP, str(interpreter))
    assert text.startswith("#!/bin/sh\n# cnimeta-launcher ")
    path = tmp_path / "portmap"
    path.write_text(text)
    path.chmod(0o755)
    assert '"supportedVersions"' in version_of(path)
    assert launcher.read_target(str(path)) is not None


@pytest.mark.parametrize("folder", ["it's here", "back slash\\", "new\nline"])
def test_an_interpreter_is_refused_when_no_launcher_can_name_it(folder: str) -> None:
    with pytest.raises(ValueError, match="a launcher cannot name the interpreter"):
        launcher.render(PORTMAP, f"/opt/{folder}/python")
