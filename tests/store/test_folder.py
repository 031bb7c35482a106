"""Folders and files that somebody else made or may write to: refused with code 104, named, and never waited for."""

from __future__ import annotations

import os
import signal
import stat
from contextlib import contextmanager

import pytest
from store_kit import Place, everything, put

from cnimeta.errors import StateUnusable
from cnimeta.store.locks import AttachmentLocks
from cnimeta.store.records import Records

pytestmark = pytest.mark.unit

NOBODY = 65534
KEY = ("net", "c1", "eth0")


@contextmanager
def never_waiting():
    """A command that waits for whoever opens the other end of a FIFO fails the test."""

    def late(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def uses(place: Place):
    database = place.database(timeout_s=0.5)
    locks = AttachmentLocks(f"{place.folder}/locks", 0.5)

    def locked():
        with locks.of(KEY).held():
            pass

    return {
        "write": lambda: database.write(put("a")),
        "read": lambda: database.read(everything),
        "tolerant read": lambda: database.read(everything, tolerant=True),
        "lock": locked,
    }


def refused(place: Place, *, what: str, names: tuple[str, ...] = ("write", "read", "tolerant read")) -> None:
    for name in names:
        with never_waiting(), pytest.raises(StateUnusable, match=what) as raised:
            uses(place)[name]()
        assert raised.value.code == 104
        assert "mode" in raised.value.msg


ALL = ("write", "read", "tolerant read", "lock")


def test_folder_of_another_user_is_refused(real):
    real.database().write(put("planted"))
    os.chown(real.folder, NOBODY, NOBODY)
    refused(real, what="owner 65534, mode 0700", names=ALL)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o707])
def test_folder_that_others_may_write_to_is_refused(real, mode):
    real.database().write(put("planted"))
    os.chmod(real.folder, mode)
    refused(real, what=f"owner 0, mode {mode:04o}", names=ALL)


@pytest.mark.parametrize("mode", [0o755, 0o750])
def test_folder_that_others_may_read_is_used(real, mode):
    real.database().write(put("a"))
    os.chmod(real.folder, mode)
    assert real.database().read(everything) == {"a": "v"}


def test_folder_that_is_a_link_is_refused(real, tmp_path):
    real.database().write(put("planted"))
    (tmp_path / "link").symlink_to(real.folder)
    refused(Place(str(tmp_path / "link")), what="it is not a folder", names=ALL)


def test_folder_that_is_a_file_or_a_fifo_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "fifo"):
        refused(Place(str(tmp_path / name)), what="it is not a folder", names=ALL)


@pytest.mark.parametrize("how", ["another owner", "mode 0777"])
def test_folder_below_one_that_somebody_may_exchange_it_in_is_refused(tmp_path, how):
    above = tmp_path / "above"
    place = Place(str(above / "between" / "state"))
    place.database().write(put("planted"))
    if how == "another owner":
        os.chown(above, NOBODY, NOBODY)
        # The kernel shows this owner for every user that a user namespace does not have, so another one is taken.
        os.chown(above, 12345, 12345)
    else:
        above.chmod(0o777)
    refused(place, what="can exchange it", names=ALL)
    (tmp_path / "link").symlink_to(above / "between")
    refused(Place(str(tmp_path / "link" / "state")), what="can exchange it", names=ALL)


FILES = (
    *("cnimeta.db", "cnimeta.db-wal", "cnimeta.db-shm", "cnimeta.db-journal", "sequence"),
    *("locks", "locks/database"),
)


def plant(kind: str, path: str, elsewhere: str) -> None:
    if os.path.lexists(path):
        if os.path.isdir(path):
            os.rename(path, elsewhere + "-before")
        else:
            os.unlink(path)
    if kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "link":
        os.symlink(elsewhere, path)
    elif kind == "link to a file":
        with open(elsewhere, "w", encoding="ascii") as file:
            file.write("x" * 100)
        os.symlink(elsewhere, path)
    elif kind == "folder":
        os.mkdir(path)
        os.mkdir(f"{path}/inside")
    else:
        with open(path, "w", encoding="ascii") as file:
            file.write("x" * 100)
        if kind == "of another user":
            os.chown(path, NOBODY, NOBODY)
        else:
            os.chmod(path, 0o666)


KINDS = ("fifo", "link", "link to a file", "folder", "of another user", "mode 0666")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_planted_file_is_refused_and_left_alone(real, tmp_path, name, kind):
    if (name, kind) == ("locks", "folder"):
        return  # as it should be
    real.database().write(put("a"))
    os.makedirs(f"{real.folder}/locks", exist_ok=True)
    os.chmod(f"{real.folder}/locks", 0o700)
    path = f"{real.folder}/{name}"
    if name.startswith("locks"):
        os.rename(real.path, tmp_path / "db")  # only making a database needs this lock
        os.unlink(f"{real.folder}/sequence")
    plant(kind, path, str(tmp_path / "elsewhere"))
    before = os.lstat(path)
    refused(real, what=name.rpartition("/")[2])
    assert os.lstat(path)[:3] == before[:3]
    assert not (tmp_path / "elsewhere").exists() or (tmp_path / "elsewhere").read_text() == "x" * 100


@pytest.mark.parametrize("kind", KINDS)
def test_planted_lock_of_an_attachment_is_refused(real, tmp_path, kind):
    locks = AttachmentLocks(f"{real.folder}/locks", 0.5)
    with locks.of(KEY).held():
        pass
    (path,) = [f"{real.folder}/locks/{name}" for name in os.listdir(f"{real.folder}/locks")]
    plant(kind, path, str(tmp_path / "elsewhere"))
    refused(real, what="is not used", names=("lock",))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cnimeta.db.new", "cnimeta.db.new-wal", "cnimeta.db.new-journal", "reserve"])
def test_what_is_planted_in_the_makers_way_is_removed_or_refused_without_a_wait(real, tmp_path, name, kind):
    os.mkdir(real.folder, 0o700)
    plant(kind, f"{real.folder}/{name}", str(tmp_path / "elsewhere"))
    with never_waiting():
        try:
            real.database().write(put("a"))
        except StateUnusable:
            assert kind == "folder"
        else:
            assert real.database().read(everything) == {"a": "v"}
    assert not (tmp_path / "elsewhere").exists() or (tmp_path / "elsewhere").read_text() == "x" * 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_planted_damaged_database_is_refused_without_a_wait(real, tmp_path, suffix, kind):
    """Nothing is taken over from a file that is not ours."""
    os.mkdir(real.folder, 0o700)
    if suffix:
        with open(f"{real.path}.damaged", "wb"):
            os.chmod(f"{real.path}.damaged", 0o600)
    plant(kind, f"{real.path}.damaged{suffix}", str(tmp_path / "elsewhere"))
    refused(real, what="is not used")


def test_records_of_a_plugin_refuse_a_foreign_folder_too(tmp_path):
    os.mkdir(tmp_path / "state")
    os.chmod(tmp_path / "state", 0o777)
    records = Records(str(tmp_path / "state"), log=lambda _: None)
    with pytest.raises(StateUnusable, match="mode 0777"):
        records.put(KEY, {})
    with pytest.raises(StateUnusable, match="mode 0777"), records.locks.of(KEY).held():
        pass
    assert os.listdir(tmp_path / "state") == []


def test_huge_files_are_not_read_whole(real):
    real.database().write(put("a"))
    os.truncate(f"{real.folder}/sequence", 1 << 33)
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert real.database().read(everything) == {"a": "v"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert stat.S_ISREG(os.stat(real.path).st_mode)
