"""The lock with the lowest and the highest release of filelock that is allowed, from the index pip is configured with."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.crash

LOWEST, HIGHEST = "==3.15.4", ""
WORKERS, ROUNDS = 4, 25
WORK = """
    import os, sys, time
    from cnimeta.host.lock import NodeLock
    folder, rounds = sys.argv[1], int(sys.argv[2])
    for number in range(rounds):
        with NodeLock(f"{folder}/lock", 60).held():
            with open(f"{folder}/count") as file:
                count = int(file.read())
            time.sleep(0.001)
            with open(f"{folder}/count", "w") as file:
                file.write(str(count + 1))
            if number % 2:
                os.unlink(f"{folder}/lock")  # as some releases do when they let go
    print("filelock" in sys.modules and sys.modules["filelock"].__file__)
"""


@pytest.mark.parametrize("release", [LOWEST, HIGHEST], ids=["lowest", "highest"])
def test_one_at_a_time_holds_the_lock_when_its_file_is_removed_by_those_who_let_go(
    tmp_path: Path, release: str
) -> None:
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, f"filelock{release}"], check=True, capture_output=True)
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", textwrap.dedent(WORK), str(tmp_path), str(ROUNDS)]
    environ = {**os.environ, "PYTHONPATH": f"{site}:{Path(__file__).parents[2]}"}
    workers = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)]
    told = {worker.communicate()[0].strip() for worker in workers}
    assert [worker.returncode for worker in workers] == [0] * WORKERS
    assert (tmp_path / "count").read_text() == str(WORKERS * ROUNDS)
    assert any(path.startswith(str(site)) for path in told), told
