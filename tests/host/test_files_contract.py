"""One contract for every Files: in memory, and on the disk in each of its modes."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from cnimeta.host.files import PosixFiles, replace_file
from cnimeta.testing.files import MemoryFiles

if TYPE_CHECKING:
    from pathlib import Path

    from cnimeta.host.protocols import Files

pytestmark = pytest.mark.unit

KINDS = {
    "memory": MemoryFiles,
    "disk": PosixFiles,
    "exclusive": lambda: PosixFiles(exclusive=True),
    "not durable": lambda: PosixFiles(durable=False),
}


@pytest.fixture(params=KINDS)
def files(request: pytest.FixtureRequest) -> Files:
    return KINDS[request.param]()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"{tmp_path}/state"


def test_content_is_what_was_written_last(files: Files, folder: str) -> None:
    assert files.read(f"{folder}/deep/a") is None
    for data in (b"first", b"", b"\0" * 100_000, b"last"):
        files.write(f"{folder}/deep/a", data)
        assert files.read(f"{folder}/deep/a") == data
    assert files.names(f"{folder}/deep") == ["a"]


def test_missing_is_fine_when_it_is_removed(files: Files, folder: str) -> None:
    files.remove(f"{folder}/a")
    files.write(f"{folder}/a", b"x")
    for _ in range(2):
        files.remove(f"{folder}/a")
        assert files.read(f"{folder}/a") is None
        assert files.names(folder) == []


def test_names_are_sorted_and_of_files_in_this_folder_only(files: Files, folder: str) -> None:
    assert files.names(folder) == []
    for name in ("b", "a", "ab", "sub/c"):
        files.write(f"{folder}/{name}", b"x")
    assert files.names(folder) == ["a", "ab", "b"]
    assert files.names(f"{folder}/sub") == ["c"]


def test_any_name_is_of_a_file_in_this_folder_that_ends_so(files: Files, folder: str) -> None:
    assert not files.any_name(folder, "")
    files.write(f"{folder}/sub.json/c.txt", b"x")
    assert not files.any_name(folder, ".json")
    files.write(f"{folder}/a.json", b"x")
    assert files.any_name(folder, ".json")
    assert not files.any_name(folder, ".txt")
    with pytest.raises(OSError, match="irectory"):
        files.any_name(f"{folder}/a.json", "")


def test_a_folder_is_no_file_and_a_file_no_folder(files: Files, folder: str) -> None:
    files.write(f"{folder}/sub/c", b"x")
    for attempt in (
        lambda: files.read(f"{folder}/sub"),
        lambda: files.write(f"{folder}/sub", b"y"),
        lambda: files.remove(f"{folder}/sub"),
        lambda: files.names(f"{folder}/sub/c"),
        lambda: files.write(f"{folder}/sub/c/d", b"y"),
    ):
        with pytest.raises(OSError, match=r"irectory|exists"):
            attempt()
    assert files.read(f"{folder}/sub/c") == b"x"
    assert files.names(folder) == []


def test_old_content_stays_and_nothing_beside_it_when_a_write_fails(files: Files, folder: str) -> None:
    files.write(f"{folder}/a", b"old")
    if isinstance(files, MemoryFiles):
        files.fail_at(1)
    else:
        os.mkdir(f"{folder}/.tmp-a")
        os.mkdir(f"{folder}/.tmp-{os.getpid()}-a")
    with pytest.raises(OSError, match=r"No space|directory"):
        files.write(f"{folder}/a", b"new")
    assert files.read(f"{folder}/a") == b"old"
    assert files.names(folder) == ["a"]


def test_replaced_file_has_the_mode_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    path, before = str(tmp_path / "program"), os.umask(0o077)
    try:
        for data, mode in ((b"first", 0o755), (b"second", 0o644), (b"third", 0o600)):
            replace_file(path, data, mode=mode, temporary=f".tmp-{os.getpid()}-")
            assert (stat.S_IMODE(os.stat(path).st_mode), os.listdir(tmp_path)) == (mode, ["program"])
    finally:
        os.umask(before)
