"""SQLite's module without what it does not need, and with all that it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
{before}
from cnimeta.store.engine import sqlite
loaded = [name for name in ("functools", "collections") if name in sys.modules]
connection = sqlite.connect(":memory:", cached_statements=8)
connection.execute("CREATE TABLE numbers (number)")
for number in range(500):  # more statements than are kept, each of them twice
    connection.execute(f"INSERT INTO numbers VALUES ({{number % 50}})")
    connection.execute("INSERT INTO numbers VALUES (?)", (number,))
import functools
assert functools.lru_cache.__module__ == "functools"
print(loaded, connection.execute("SELECT count(*), sum(number) FROM numbers").fetchone())
"""
SUM = sum(number % 50 + number for number in range(500))


@pytest.mark.parametrize(("before", "loaded"), [("", []), ("import functools", ["functools", "collections"])])
def test_statements_are_kept_when_functools_is_not_loaded_for_it(before: str, loaded: list[str]) -> None:
    program = PROGRAM.format(root=str(Path(__file__).parents[2]), before=before)
    done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{loaded} (1000, {SUM})\n", "")
