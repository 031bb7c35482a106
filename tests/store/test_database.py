"""What a database promises, on the real one and on the one in memory; then what only files can show."""

from __future__ import annotations

import _sqlite3
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_kit import ONE, TWO, Place, Things, everything, put

from cnimeta.errors import CniError, StateUnusable, TryAgainLater
from cnimeta.host import afterwards
from cnimeta.store import left
from cnimeta.store.database import LaterVersion
from cnimeta.store.sql import connect, set_seal
from cnimeta.store.values import Damage

pytestmark = pytest.mark.unit


# --- both ------------------------------------------------------------------------------------------------


def test_transaction_is_there_for_the_next_process_when_it_was_committed(place):
    assert place.database().write(lambda connection: put("a", "1")(connection).rowcount) == 1
    assert place.database().read(everything) == {"a": "1"}


def test_transaction_leaves_nothing_when_its_work_raises(place):
    database = place.database()
    database.write(put("a"))

    def fails(connection):
        put("b")(connection)
        raise ValueError("work")

    with pytest.raises(ValueError, match="work"):
        database.write(fails)
    assert database.read(everything) == {"a": "v"}
    database.write(put("c"))
    assert place.database().read(everything) == {"a": "v", "c": "v"}


def test_constraint_of_the_schema_is_raised_as_it_is(place):
    database = place.database()
    with pytest.raises(_sqlite3.IntegrityError):
        database.write(lambda connection: [connection.execute("INSERT INTO things VALUES ('a', 'x')") for _ in "12"])
    assert database.read(everything) == {}


def test_reading_sees_one_moment(place):
    database = place.database()
    database.write(put("a"))

    def work(connection):
        first = everything(connection)
        if place.kind == "real":
            place.database().write(put("b"))
        return first, everything(connection)

    first, second = database.read(work)
    assert first == second == {"a": "v"}


def test_database_exists_once_it_was_used(place):
    database = place.database()
    assert not database.exists()
    database.read(everything)
    assert database.exists()
    assert database.problems() == []
    assert place.contents.gathered == 1


def test_owner_is_asked_what_others_know_when_there_is_no_database(place):
    place.contents.known = {"known": "1"}
    assert place.database().read(everything) == {"known": "1"}
    assert place.database().read(everything) == {"known": "1"}
    assert place.contents.gathered == 1


def test_nothing_is_made_when_what_others_know_cannot_be_told(place):
    def fails():
        raise CniError("nobody answers", code=5)

    place.contents.gather = fails
    with pytest.raises(CniError, match="nobody answers"):
        place.database().write(put("a"))
    with pytest.raises(CniError, match="nobody answers"):
        place.database().read(everything)
    del place.contents.gather
    assert place.database().read(everything) == {}


def test_owner_is_told_once_when_the_boot_is_another(place):
    place.database().write(put("a", "of this boot"))
    place.database().write(put("b", "stays"))
    assert place.database("next").read(everything) == {"b": "stays"}
    assert place.database("next").read(everything) == {"b": "stays"}
    assert place.contents.boots == 1


def test_damage_that_the_owner_finds_has_the_database_made_anew(place):
    database = place.database()
    for name in ("a", "b"):
        database.write(put(name))
    place.contents.known = {"c": "known"}
    runs = []

    def work(connection):
        runs.append(1)
        if "c" not in everything(connection):
            put("half")(connection)
            raise Damage("it looks odd")
        return everything(connection)

    assert database.write(work) == {"a": "v", "b": "v", "c": "known"}
    assert len(runs) == 2
    assert any("damaged (it looks odd)" in line for line in place.log)
    assert place.database().read(everything) == {"a": "v", "b": "v", "c": "known"}


def test_damage_found_by_reading_has_it_made_anew_too(place):
    database = place.database()
    database.write(put("a"))

    def work(connection):
        if place.contents.gathered == 1:
            raise Damage("it looks odd")
        return everything(connection)

    assert database.read(work) == {"a": "v"}


def test_damage_without_an_end_is_an_error_and_no_loop(place):
    def work(_connection):
        raise Damage("it always looks odd")

    with pytest.raises(StateUnusable, match="always looks odd"):
        place.database().write(work)
    assert place.database().read(everything) == {}


def test_earlier_version_is_migrated_and_keeps_its_contents(place):
    place.database().write(put("a"))
    place.contents.schema = TWO
    assert place.database().read(lambda c: c.execute("SELECT * FROM things").fetchall()) == [("a", "v", "more")]
    assert place.contents.gathered == 1


def test_later_version_is_refused_and_may_be_read_by_the_tolerant(place):
    place.contents.schema = TWO
    place.database().write(put("a"))
    place.contents.schema = ONE
    database = place.database()
    with pytest.raises(LaterVersion, match="later version") as raised:
        database.write(put("b"))
    assert raised.value.code == 104
    with pytest.raises(LaterVersion):
        database.read(everything)
    assert database.read(everything, tolerant=True) == {"a": "v"}
    assert database.later == 2
    database.write(lambda c: c.execute("DELETE FROM things"), tolerant=True)
    place.contents.schema = TWO
    assert place.database().read(everything) == {}
    assert place.contents.gathered == 1


def test_damage_in_a_later_version_is_left_to_that(place):
    place.contents.schema = TWO
    place.database().write(put("a"))
    place.contents.schema = ONE

    def work(_connection):
        raise Damage("it looks odd to us")

    with pytest.raises(StateUnusable, match="odd to us"):
        place.database().write(work, tolerant=True)
    assert place.database().read(everything, tolerant=True) == {"a": "v"}


def test_busy_database_is_code_11_after_the_wait_and_nothing_was_done(place):
    database = place.database(timeout_s=0.3)
    database.write(put("a"))
    other = place.database()
    if place.kind == "real":
        other._opened().execute("BEGIN IMMEDIATE")
    place.databases.busy = True
    began = time.monotonic()
    with pytest.raises(TryAgainLater, match=r"not free within 0\.3 s") as raised:
        database.write(put("b"))
    assert raised.value.code == 11
    assert place.kind == "memory" or 0.25 < time.monotonic() - began < 5
    assert database.read(everything) == {"a": "v"}  # nobody who reads waits


# --- files -----------------------------------------------------------------------------------------------


def test_files_are_private_whatever_the_umask(real):
    old = os.umask(0)
    try:
        database = real.database()
        database.write(put("a"))
        for path, _, files in os.walk(real.folder):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o700, path
            for name in files:
                assert stat.S_IMODE(os.stat(os.path.join(path, name)).st_mode) == 0o600, name
    finally:
        os.umask(old)


def test_folders_above_are_made_and_are_nobody_elses(tmp_path):
    old = os.umask(0)
    try:
        Place(str(tmp_path / "a" / "b" / "state")).database().write(put("a"))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) & 0o022 == 0
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) & 0o022 == 0


@pytest.mark.parametrize("name", ["état", "日本", "a b", "a?b#c%41", "/twice"])
def test_folder_may_be_called_anything(tmp_path, name):
    place = Place(f"{tmp_path}/{name}")
    place.database().write(put("a"))
    assert place.database().read(everything) == {"a": "v"}


def test_replaced_database_is_noticed_by_a_process_that_has_it_open(real):
    first = real.database()
    first.write(put("a"))
    second = real.database()
    assert second.read(everything) == {"a": "v"}
    os.rename(real.path, f"{real.folder}/elsewhere")
    os.unlink(f"{real.path}-wal")
    os.unlink(f"{real.path}-shm")
    real.contents.known = {"known": "1"}
    third = real.database()
    third.write(put("c"))
    assert first.read(everything) == {"known": "1", "c": "v"}  # its own is gone
    second.write(put("b"))
    assert real.database().read(everything) == {"known": "1", "b": "v", "c": "v"}


def test_log_of_the_new_database_stays_when_a_process_closes_the_old_one(real):
    """SQLite removes a log by its name; whether it is the log of this database it knows by the inode."""
    old = real.database()
    old.write(put("a"))
    os.rename(real.path, f"{real.folder}/elsewhere")
    os.rename(f"{real.path}-wal", f"{real.folder}/elsewhere-wal")
    os.unlink(f"{real.path}-shm")
    new = real.database()
    new.write(put("b"))
    log = os.stat(f"{real.path}-wal").st_ino, os.stat(f"{real.path}-shm").st_ino
    old._forget()
    assert (os.stat(f"{real.path}-wal").st_ino, os.stat(f"{real.path}-shm").st_ino) == log
    new.write(put("c"))
    assert real.database().read(everything) == {"b": "v", "c": "v"}
    assert [line for line in real.log if "lost" in line] == []


def test_transaction_is_made_again_when_the_database_was_replaced_while_it_was_committed(real):
    """The one that could not be opened any more was replaced by another command, which could lock nobody out."""
    database = real.database()
    database.write(put("a"))
    runs = []

    def work(connection):
        runs.append(1)
        if len(runs) == 1:
            os.rename(real.path, f"{real.folder}/elsewhere")
            os.rename(f"{real.path}-wal", f"{real.folder}/elsewhere-wal")
            os.unlink(f"{real.path}-shm")
            real.database().write(put("x"))
        put("b")(connection)

    database.write(work)
    assert len(runs) == 2
    assert real.database().read(everything) == {"b": "v", "x": "v"}


def test_connection_never_crosses_a_fork(real):
    database = real.database()
    database.write(put("parent"))
    for _ in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                inherited = database._connection
                database.write(put(f"child {os.getpid()}"))
                assert database._connection is not inherited
                assert inherited in left.of_parents
                del database
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        database.write(put("parent"))
    assert len(database.read(everything)) == 4
    assert database.problems() == []
    assert real.log == []


def test_locks_of_the_parent_stay_when_a_child_drops_its_databases(real):
    """A child that closes, or forgets, what it inherited must not let others into the parent's transaction."""
    database = real.database(timeout_s=0.3)
    database.write(put("a"))
    database._connection.execute("BEGIN IMMEDIATE")
    child = os.fork()
    if child == 0:
        del database
        sys.stdout = None  # an ordinary end, with all that Python does then
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(TryAgainLater):
        real.database(timeout_s=0.2).write(put("b"))
    database._connection.execute("ROLLBACK")
    real.database().write(put("b"))


def test_process_that_ends_as_python_does_leaves_its_parents_database_alone(real, tmp_path):
    script = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from store_kit import Place, put, everything
place = Place({real.folder!r})
database = place.database()
database.write(put("parent"))
database._connection.execute("BEGIN IMMEDIATE")
put("open")(database._connection)
if os.fork() == 0:
    sys.exit(0)
os.wait()
assert os.path.exists(place.path + "-wal")
other = place.database(timeout_s=0.2)
try:
    other.write(put("x"))
except Exception as error:
    assert error.code == 11, error
else:
    raise AssertionError("the lock was lost")
database._connection.execute("COMMIT")
print(sorted(place.database().read(everything)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("['open', 'parent']", "")


@pytest.mark.parametrize("kill", [False, True])
def test_two_processes_make_one_database_when_both_are_the_first(real, kill):
    """The first is stopped in the middle of making it, and goes on or dies."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from store_kit import Place, Things, put
class Stopping(Things):
    def gather(self):
        print("making", flush=True)
        sys.stdin.readline()
        return {{}}
Place({real.folder!r}).database(contents=Stopping()).write(put("first"))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "making\n"
    with pytest.raises(TryAgainLater):
        real.database(timeout_s=0.2).write(put("second"))
    if kill:
        process.kill()
    process.communicate("\n")
    real.database().write(put("second"))
    assert real.database().read(everything) == {"second": "v", **({} if kill else {"first": "v"})}


def test_transactions_that_were_lost_with_the_log_are_noticed(real):
    real.database().write(put("a"))
    before = Path(real.path).read_bytes()
    for number in range(5):
        real.database().write(put(f"b{number}"))
    with open(real.path, "wb") as file:  # the log has been copied into the database meanwhile: undo that
        file.write(before)
    real.contents.known = {"known": "1"}
    assert real.database().read(everything) == {"a": "v", "known": "1"}
    assert any("its last 5 transactions are lost" in line for line in real.log)


@pytest.mark.parametrize("content", [b"", b"x" * 27, b"9" * 27, b"000000000000000999 00000000", None])
def test_unknown_number_of_transactions_is_looked_into_and_said(real, content):
    real.database().write(put("a"))
    if content is None:
        os.unlink(f"{real.folder}/sequence")
    else:
        with open(f"{real.folder}/sequence", "wb") as file:
            file.write(content)
    assert real.database().read(everything) == {"a": "v"}
    assert any("not known" in line for line in real.log)
    real.log.clear()
    assert real.database().read(everything) == {"a": "v"}
    assert real.log == []


def test_power_loss_that_left_the_number_ahead_is_no_damage(real):
    """Nothing is synced: the file beside the database may have got further than the database."""
    real.database().write(put("a"))
    before = Path(real.path).read_bytes()
    for number in range(4):
        real.database().write(put(f"b{number}"))
    with open(real.path, "wb") as file:
        file.write(before)
    for _ in range(3):
        assert real.database("next boot").read(everything) == {"a": "v"}
    real.database("next boot").write(put("c"))
    assert real.log == []
    assert real.contents.gathered == 1


def test_damaged_databases_are_kept_and_only_the_last_few(real):
    for number in range(8):
        real.database().write(put(f"a{number}"))
        with open(real.path, "r+b") as file:
            file.write(b"%d is no database at all" % number)
    real.database().write(put("b"))
    kept = [name for name in real.names() if name.startswith("cnimeta.db.damaged-") and "-wal" not in name]
    assert kept == [f"cnimeta.db.damaged-{number}" for number in range(5, 9)]
    assert Path(f"{real.folder}/cnimeta.db.damaged-8").read_bytes()[:20] == b"7 is no database at "


def test_database_of_somebody_elses_making_is_not_taken_for_ours(real):
    os.makedirs(real.folder, mode=0o700)
    other = _sqlite3.connect(real.path)
    other.execute("CREATE TABLE things (name TEXT, value TEXT)")
    other.execute("PRAGMA user_version=1")
    other.close()
    assert real.database().read(everything) == {}
    assert any("is damaged" in line for line in real.log)


def test_version_that_was_migrated_meanwhile_is_noticed_by_an_earlier_one(real):
    """An earlier version has the database open while a later one changes its tables."""
    earlier = real.database()
    earlier.write(put("a"))
    later = real.database(contents=Things(TWO))
    later.write(put("b"))
    with pytest.raises(LaterVersion):
        earlier.write(put("c"))
    with pytest.raises(LaterVersion):
        earlier.read(everything)
    assert earlier.read(everything, tolerant=True) == {"a": "v", "b": "v"}
    assert real.sql("PRAGMA user_version") == [(2,)]


def test_two_processes_that_migrate_at_once_make_one_migration(real):
    real.database().write(put("a"))
    databases = [real.database(contents=Things(TWO)) for _ in range(4)]
    for database in databases:
        database.write(put("b"))
    assert real.sql("SELECT count(*) FROM pragma_table_info('things')") == [(3,)]


def test_flipped_version_is_damage_and_no_later_version(real):
    real.database().write(put("a"))
    real.sql("PRAGMA user_version=77")
    assert real.database().read(everything) == {"a": "v"}
    assert any("its version, boot or tables" in line for line in real.log)
    real.sql("PRAGMA user_version=77")
    connection = _sqlite3.connect(real.path, isolation_level=None)
    set_seal(connection)  # as that version would
    connection.close()
    with pytest.raises(LaterVersion):
        real.database().read(everything)


def test_migration_that_fails_leaves_the_earlier_version(real):
    real.database().write(put("a"))
    from cnimeta.store.values import Schema

    broken = Schema((*TWO.steps, ("CREATE TABLE more (a)", "THIS IS NO SQL")))
    with pytest.raises(StateUnusable):
        real.database(contents=Things(broken)).write(put("b"))
    assert real.sql("PRAGMA user_version") == [(1,)]
    assert real.database().read(everything) == {"a": "v"}
    assert [line for line in real.log if "damaged" in line] == []


def test_only_the_c_module_is_imported():
    script = """
import sys
import cnimeta.store.database
slow = {"sqlite3", "datetime", "typing", "json", "re", "dataclasses", "filelock", "enum", "collections"}
import _sqlite3
before = set(sys.modules)
print(sorted(slow & set(sys.modules) - {"collections"}))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {os.getcwd()!r})\n{script}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("once", [True, False])
def test_process_that_answers_once_leaves_its_log_to_the_next(real, once):
    """Who closes a database last puts its log away, and waits for the disk; plugins end without."""
    real.database().write(put("a"))
    child = os.fork()
    if child == 0:
        if once:
            afterwards.begin()
        database = real.database()
        database.write(put("b"))
        del database
        log = f"{real.path}-wal"
        os._exit(int(os.path.exists(log) and os.path.getsize(log) > 0))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == int(once)
    assert real.database().read(everything) == {"a": "v", "b": "v"}


def test_database_that_was_moved_aside_is_not_begun_empty_by_who_was_about_to_open_it(real):
    real.database().write(put("a"))
    met = []

    def gather(_contents):
        with pytest.raises(_sqlite3.OperationalError, match="unable to open"):
            connect(real.path)  # as a command does that has looked at the file just before
        met.append(os.path.exists(real.path))
        return {"known": "1"}

    os.truncate(real.path, 100)
    made = real.database(contents=type("Meeting", (Things,), {"gather": gather})())
    made.write(put("b"))
    assert met == [False]
    assert real.database().read(everything) == {"known": "1", "b": "v"}


def test_process_that_answers_again_goes_on_with_its_connection_to_the_same_file(real):
    """And opens another one where the file is another, or the process is."""

    def opened() -> list[str]:
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return sorted(os.readlink(link) for link in links if os.path.lexists(link))

    def one_command(key: str) -> dict[str, str]:
        database = real.database()
        database.write(put(key))
        return dict(database.read(everything))

    child = os.fork()
    if child == 0:
        status = 9
        try:
            afterwards.begin()
            one_command("a")
            before = [path for path in opened() if path.startswith(real.path)]
            assert before
            for key in "bcdefgh":
                one_command(key)
            assert [path for path in opened() if path.startswith(real.path)] == before
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0 if len(one_command("i")) == 9 else 1)
            assert os.waitpid(grandchild, 0)[1] == 0
            assert len(one_command("j")) == 10
            for name in os.listdir(os.path.dirname(real.path)):
                if name.startswith(os.path.basename(real.path)) or name == "sequence":
                    os.unlink(f"{os.path.dirname(real.path)}/{name}")
            assert one_command("k") == {"k": "v"}
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert real.database().read(everything) == {"k": "v"}


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9])
def test_database_that_is_cut_off_while_others_have_it_open_is_made_anew(real, suffix, part):
    """The others' index of the log says that more is there: SQLite calls that a disk error."""
    other = real.database()
    for number in range(200):
        other.write(put(f"{number}", "v" * 300))
    other.read(everything)
    path = real.path + suffix
    os.truncate(path, int(os.path.getsize(path) * part))
    database = real.database()
    database.write(put("new"))
    assert "new" in real.database().read(everything)
    assert real.database().problems() == []
