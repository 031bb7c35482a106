"""Closing late: held until the answer is out in a process that ends then, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

HELD = """
import os, sys
from cnimeta.host import afterwards
from cnimeta.plugin import Plugin
from cnimeta.plugin.dispatch import start

class Held:
    def __init__(self, number): self.number = number
    def fileno(self): return self.number
    def close(self): os.write(2, b"closed early ")

class Late(Plugin):
    name = "late"
    def delete(self, request):
        os.set_inheritable(int(sys.argv[1]), False)
        for _ in range(int(sys.argv[2])):
            afterwards.hold(Held(int(sys.argv[1])))
            afterwards.expect_wait()

heard = os.dup(2)  # the streams themselves are given up before
os.register_at_fork(after_in_child=lambda: os.write(heard, b"a child"))
start(Late)
"""


@pytest.mark.parametrize(("held", "said"), [(0, b""), (2, b"a child")])
def test_child_closes_what_is_held_when_the_answer_is_out(held: int, said: bytes) -> None:
    ours, theirs = os.pipe()
    environ = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c", "CNI_IFNAME": "e"}
    done = subprocess.run(
        [sys.executable, "-c", HELD, str(theirs), str(held)],
        env=environ, input=b'{"cniVersion": "1.0.0", "name": "n", "type": "late"}', capture_output=True,
        pass_fds=[theirs], timeout=20, check=False,
    )  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", said)
    assert os.read(ours, 1) == b""  # the child, which had nothing else, has ended
    os.close(ours)


READING = HELD.replace("afterwards.expect_wait()", "pass")


def test_nothing_is_forked_when_nothing_was_deleted() -> None:
    ours, theirs = os.pipe()
    environ = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c", "CNI_IFNAME": "e"}
    conf = b'{"cniVersion":"1.0.0","name":"n","type":"late"}'
    done = subprocess.run(
        [sys.executable, "-c", READING, str(theirs), "2"],
        input=conf, env=environ, capture_output=True, pass_fds=(theirs,), check=False,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
