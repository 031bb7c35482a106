"""Files of state lie in folders of this user's alone; what is planted there is refused with code 104, never waited for."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from cnimeta.errors import IoFailure, StateUnusable
from cnimeta.host.files import MAX_BYTES, PosixFiles
from cnimeta.host.nodeconfig import read_section
from cnimeta_plugins.portmap.names import file_name
from cnimeta_plugins.portmap.plan import Owner
from cnimeta_plugins.portmap.records import Records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit

NOBODY = 65534
OWNER = Owner("net", "c1", "eth0")


@pytest.fixture(autouse=True)
def _never_waiting() -> Iterator[None]:
    """A command that waits for the other end of a FIFO fails the test."""

    def late(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def open_to_all(folder: Path) -> None:
    folder.chmod(0o777)


def of_another_user(folder: Path) -> None:
    os.chown(folder, NOBODY, NOBODY)


def below_a_folder_open_to_all(folder: Path) -> None:
    folder.parent.chmod(0o777)


def through_a_link(folder: Path) -> None:
    folder.rename(folder.with_name("real"))
    folder.symlink_to(folder.with_name("real"))


@pytest.mark.parametrize("spoil", [open_to_all, of_another_user, below_a_folder_open_to_all, through_a_link])
@pytest.mark.parametrize("use", ["read", "write", "remove", "names"])
def test_folder_that_others_may_write_is_refused(tmp_path: Path, spoil: Callable[[Path], None], use: str) -> None:
    folder = tmp_path / "above" / "state"
    files = PosixFiles()
    files.write(f"{folder}/a", b"1")
    spoil(folder)
    with pytest.raises(StateUnusable, match="mode") as caught:
        files.names(str(folder)) if use == "names" else getattr(files, use)(
            f"{folder}/a", *([b"2"] if use == "write" else [])
        )
    assert caught.value.code == 104
    assert (folder / "a").read_bytes() == b"1"


def fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def folder_of_that_name(path: Path) -> None:
    path.mkdir()


def link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def of_somebody_else(path: Path) -> None:
    path.write_bytes(b"{}")
    os.chown(path, NOBODY, NOBODY)


def writable_by_all(path: Path) -> None:
    path.write_bytes(b"{}")
    path.chmod(0o666)


@pytest.mark.parametrize("plant", [fifo, folder_of_that_name, link, of_somebody_else, writable_by_all])
def test_record_that_is_no_file_of_ours_is_refused(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    records = Records(str(tmp_path), PosixFiles(exclusive=True, durable=False), lambda _: None)
    (tmp_path / "portmap").mkdir(0o700)
    plant(tmp_path / "portmap" / file_name(OWNER))
    with pytest.raises(StateUnusable) as caught:
        records.find(OWNER)
    assert caught.value.code == 104


def test_record_of_a_gigabyte_is_damaged_and_not_read(tmp_path: Path) -> None:
    lines: list[str] = []
    records = Records(str(tmp_path), PosixFiles(exclusive=True, durable=False), lines.append)
    (tmp_path / "portmap").mkdir(0o700)
    path = tmp_path / "portmap" / file_name(OWNER)
    path.touch(0o600)
    os.truncate(path, 1 << 30)
    found = records.find(OWNER)
    assert found.record is None
    assert str(MAX_BYTES) in found.problem
    assert lines
    records.forget(OWNER)
    assert not path.exists()


@pytest.mark.parametrize("plant", [fifo, folder_of_that_name, link])
def test_node_configuration_that_is_no_file_is_not_waited_for(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "config.toml")
    with pytest.raises(IoFailure, match=r"config\.toml"):
        read_section("portmap", {"CNIMETA_CONFIG": str(tmp_path / "config.toml")})


def test_node_configuration_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[portmap]\nbackend = "iptables"\n')
    assert read_section("portmap", {"CNIMETA_CONFIG": str(path)}).text("backend") == "iptables"
    os.truncate(path, 1 << 30)
    with pytest.raises(IoFailure, match="longer than"):
        read_section("portmap", {"CNIMETA_CONFIG": str(path)})
