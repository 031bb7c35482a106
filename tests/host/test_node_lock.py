"""The node-wide lock between real processes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock, Timeout

from cnimeta.errors import StateUnusable, TryAgainLater
from cnimeta.host.lock import NodeLock

pytestmark = pytest.mark.unit

HOLDER = """
import sys, time
from cnimeta.host.lock import NodeLock
with NodeLock(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_lock_is_refused_after_the_deadline_when_another_process_holds_it(tmp_path, holder):
    start = time.monotonic()
    with (
        pytest.raises(TryAgainLater, match=r"could not be acquired within 0\.2 s") as raised,
        NodeLock(f"{tmp_path}/lock", 0.2).held(),
    ):
        pytest.fail("held twice")
    assert raised.value.code == 11
    assert 0.2 <= time.monotonic() - start < 5


def test_lock_is_had_at_once_when_its_holder_was_killed(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with NodeLock(f"{tmp_path}/lock", 5).held():
        pass


def test_lock_file_stays_and_is_private(tmp_path):
    path = tmp_path / "state" / "lock"
    with NodeLock(str(path)).held():
        inode = path.stat().st_ino
    with NodeLock(str(path)).held():
        assert path.stat().st_ino == inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.read_bytes() == b""


def test_lock_is_released_when_the_work_fails(tmp_path):
    lock = NodeLock(f"{tmp_path}/lock", 0)
    with pytest.raises(ValueError, match="work"), lock.held():
        raise ValueError("work")
    with lock.held():
        pass


def test_error_names_the_file_when_the_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnusable, match=r"file/lock.*dataDir"), NodeLock(f"{tmp_path}/file/lock").held():
        pytest.fail("a lock in a file")


def test_filelock_and_this_lock_exclude_each_other(tmp_path):
    path = str(tmp_path / "lock")
    other = FileLock(path, thread_local=False)
    with NodeLock(path).held(), pytest.raises(Timeout):
        other.acquire(blocking=False)
    with other, pytest.raises(TryAgainLater), NodeLock(path, 0).held():
        pytest.fail("held twice")
    with NodeLock(path, 0).held():
        pass


def test_lock_is_had_while_waiting_when_its_holder_lets_go(tmp_path, holder):
    threading.Timer(0.2, holder.kill).start()
    with NodeLock(f"{tmp_path}/lock", 10).held(), pytest.raises(TryAgainLater), NodeLock(f"{tmp_path}/lock", 0).held():
        pytest.fail("held twice")


def test_filelock_is_not_imported_when_the_lock_is_free(tmp_path):
    program = f"""
import sys
import threading
from cnimeta.host.lock import NodeLock
with NodeLock({str(tmp_path / "lock")!r}).held():
    pass
print("filelock" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_lock_is_refused_when_it_is_a_link(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateUnusable), NodeLock(f"{tmp_path}/lock").held():
        pytest.fail("followed a link")
    assert not (tmp_path / "elsewhere").exists()
