"""Disks that are full, read-only or small: real file systems in a mount namespace of the test.

The test runs itself again in that namespace (`unshare --mount`); what happens there is in the functions below.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

if __name__ != "__main__":
    pytestmark = [pytest.mark.crash, pytest.mark.kernel]

SIZE = "2m"


def in_mount_namespace(scenario: str, folder: object) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, __file__, scenario, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=os.path.dirname(__file__),
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    print(done.stdout)


@pytest.mark.parametrize(
    "scenario",
    [
        "full_with_reserve",
        "full_without_a_free_byte_each_time",
        "full_while_others_have_it_open",
        "full_at_first_use",
        "read_only",
        "read_only_with_a_log",
        "read_only_without_a_database",
        "read_only_beside_a_rule",
        "read_only_of_an_earlier_boot",
        "read_only_and_foreign",
    ],
)
def test_state_on_a_disk_that_is(tmp_path, scenario):
    in_mount_namespace(scenario, tmp_path)


# --- in the namespace ------------------------------------------------------------------------------------


def mounted(folder: str, size: str = SIZE) -> str:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "none", folder], check=True)
    return f"{folder}/state"


def fill(folder: str) -> str:
    """Write to the last byte."""
    path = f"{folder}/ballast"
    with open(path, "ab", buffering=0) as file:
        chunk = 1 << 16
        while chunk:
            try:
                file.write(b"x" * chunk)
            except OSError:
                chunk //= 2
    assert os.statvfs(folder).f_bavail == 0
    return path


def remount(folder: str, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


def served(node, count: int = 40) -> list:
    from hostport_state_kit import demand, draft

    records = []
    for number in range(count):
        store = node.again()
        record = store.hold(draft(f"c{number}", pod=f"p{number}"), demand("80/tcp", ports="20000-20999")).record
        record = record._replace(phase="mapped", undo={"x": "y" * 900})
        store.settle(record)
        records.append(record)
    return records


def refused(node, what: str = "") -> str:
    """ADD is code 104 and nothing changes."""
    from hostport_state_kit import demand, draft

    from cnimeta.errors import StateUnusable

    with pytest.raises(StateUnusable, match=what or None) as raised:
        node.again().hold(draft("late"), demand("80/tcp", ports="20000-20999"))
    assert raised.value.code == 104
    return raised.value.msg


def healed(node, records: list) -> None:
    from hostport_state_kit import demand, draft

    for record in records:
        assert node.again().load(record.key) == record
    node.again().hold(draft("later"), demand("80/tcp", ports="20000-20999"))
    node.assert_whole()


def full_with_reserve(folder: str) -> None:
    """Filled once; then every container of the node is deleted."""
    from hostport_state_kit import Node

    node = Node(mounted(folder))
    records = served(node)
    assert not os.path.exists(f"{node.folder}/reserve")  # two megabytes are not plenty
    set_aside(node)
    ballast = fill(folder)
    print(refused(node))
    for record in records[:30]:
        assert node.again().load(record.key) == record
        assert node.again().release(record.key) == record, record.key
    os.unlink(ballast)
    healed(node, records[30:])


def set_aside(node) -> None:
    """As on a disk that once had plenty."""
    descriptor = os.open(f"{node.folder}/reserve", os.O_WRONLY | os.O_CREAT, 0o600)
    os.posix_fallocate(descriptor, 0, 512 * 1024)
    os.close(descriptor)


def full_without_a_free_byte_each_time(folder: str) -> None:
    """Somebody takes every byte again as soon as it is free, between all deletions."""
    from hostport_state_kit import Node

    node = Node(mounted(folder))
    records = served(node)
    set_aside(node)
    done = 0
    for record in records[:30]:
        ballast = fill(folder)
        node.again().release(record.key)
        done += 1
    print(f"{done} of 30 deletions without a free byte")
    assert done == 30
    os.unlink(ballast)
    for record in records[:30]:
        node.again().release(record.key)
    healed(node, records[30:])


def full_while_others_have_it_open(folder: str) -> None:
    """A long-lived command keeps the log from being put away: it is used again from its beginning."""
    from hostport_state_kit import Node

    node = Node(mounted(folder))
    records = served(node)
    set_aside(node)
    keeper = node.again()
    keeper.load(records[0].key)
    ballast = fill(folder)
    print(refused(node))
    for record in records[:30]:
        assert node.again().release(record.key) == record, record.key
    del keeper
    os.unlink(ballast)
    healed(node, records[30:])


def full_at_first_use(folder: str) -> None:
    from hostport_state_kit import Node, key

    node = Node(mounted(folder))
    ballast = fill(folder)
    refused(node)
    assert node.again().release(key("c0")) is None
    assert node.again().load(key("c0")) is None
    os.unlink(ballast)
    healed(node, served(node, 3))


def read_only(folder: str) -> None:
    from hostport_state_kit import Node, key

    from cnimeta.errors import StateUnusable

    node = Node(mounted(folder, "16m"))
    records = served(node, 5)
    remount(folder, "ro")
    looks(node, records)
    refused(node, "read-only")
    for use in (lambda: node.again().release(key("c0")), lambda: node.again().settle(records[0])):
        with pytest.raises(StateUnusable) as raised:
            use()
        assert raised.value.code == 104
    remount(folder, "rw")
    healed(node, records)


def looks(node, records: list) -> None:
    """Everything that only reads works."""
    for record in records:
        assert node.again().load(record.key) == record
        assert node.again().renamed(("other", *record.key[1:])) == record
    assert list(node.again().records()) == records
    assert node.again().unlisted("net", {record.key[1:] for record in records[1:]}) == records[:1]
    assert node.again().occupancy().used["tcp"].bit_count() == len(records)
    assert node.again().problems() == []
    own = f"cnimeta-copy-{os.getpid()}-"
    assert [name for name in os.listdir("/run") if name.startswith(own)] == []
    assert [name for name in os.listdir("/dev/shm") if name.startswith(own)] == []


def read_only_with_a_log(folder: str) -> None:
    """A command was killed: its log, and the index of that, are there, or only the log."""
    from hostport_state_kit import Node

    node = Node(mounted(folder, "16m"))
    child = os.fork()
    if child == 0:
        keeper = node.again()
        keeper.try_writing()
        served(node, 5)
        os._exit(0)
    os.waitpid(child, 0)
    assert os.path.getsize(f"{node.folder}/cnimeta.db-wal") > 10_000
    remount(folder, "ro")
    records = list(node.again().records())
    assert len(records) == 5
    looks(node, records)
    remount(folder, "rw")
    os.unlink(f"{node.folder}/cnimeta.db-shm")
    remount(folder, "ro")
    looks(node, records)
    remount(folder, "rw")
    healed(node, records)


def read_only_without_a_database(folder: str) -> None:
    from hostport_state_kit import Node, key

    node = Node(mounted(folder))
    remount(folder, "ro")
    assert node.again().load(key("c0")) is None
    assert node.again().release(key("c0")) is None
    assert list(node.again().records()) == []
    refused(node)
    remount(folder, "rw")
    healed(node, [])


def read_only_beside_a_rule(folder: str) -> None:
    """The state is lost, the disk takes no writes: what the kernel knows is told all the same."""
    from hostport_state_kit import Node, key, mappings_of

    node = Node(mounted(folder))
    records = served(node, 2)
    node.lose()
    node.rules = mappings_of(*records)
    remount(folder, "ro")
    found = node.again().load(key("c0"))
    assert found.salvaged
    assert found.held == records[0].held
    remount(folder, "rw")
    healed(node, [])


def read_only_of_an_earlier_boot(folder: str) -> None:
    from hostport_state_kit import Node

    node = Node(mounted(folder, "16m"))
    records = served(node, 3)
    remount(folder, "ro")
    node.boot_id = "boot-2"
    assert list(node.again().records()) == records
    assert not any(node.again().occupancy().used.values())
    assert node.again().pending() == ()
    remount(folder, "rw")


def read_only_and_foreign(folder: str) -> None:
    """Nothing of a folder that others may write to is read, from a copy neither."""
    from hostport_state_kit import Node, key

    from cnimeta.errors import StateUnusable

    node = Node(mounted(folder, "16m"))
    served(node, 1)
    os.chmod(node.folder, 0o777)
    remount(folder, "ro")
    with pytest.raises(StateUnusable, match="mode 0777"):
        node.again().load(key("c0"))


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
