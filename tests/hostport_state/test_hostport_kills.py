"""Real processes, killed at every system call that changes files and failed at every call, reads included."""

from __future__ import annotations

import os
import random

import pytest
import tracing
from state_scenarios import SCENARIOS, Stage

pytestmark = pytest.mark.crash

ERRORS = {
    "openat": ("EMFILE", "ENOSPC", "EIO", "EROFS", "EACCES", "ENOMEM"),
    "pwrite64": ("ENOSPC", "EIO", "EDQUOT"),
    "write": ("ENOSPC", "EIO"),
    "ftruncate": ("EIO", "ENOSPC"),
    "fsync": ("EIO", "ENOSPC"),
    "fdatasync": ("EIO", "ENOSPC"),
    "fallocate": ("ENOSPC", "EOPNOTSUPP"),
    "rename": ("EIO", "EROFS", "ENOSPC"),
    "link": ("EIO", "EROFS", "ENOSPC", "EPERM"),
    "unlink": ("EIO", "EROFS"),
    "mkdir": ("ENOSPC", "EROFS", "EACCES"),
    "fcntl": ("ENOLCK", "EIO"),
    "flock": ("ENOLCK", "EIO", "EINTR"),
    "fchmod": ("EPERM",),
    "chmod": ("EPERM",),
    "fchown": ("EPERM",),
    "pread64": ("EIO",),
    "read": ("EIO",),
    "newfstatat": ("EIO", "EACCES", "ENOMEM"),
    "mmap": ("ENOMEM",),
    "statfs": ("EIO",),
    "getdents64": ("EIO",),
}
SAMPLE = 25
"""So many failed calls of each scenario in an ordinary run, and kills of the rarer ones; CNIMETA_EVERY=1 makes all."""
COMMON = ("hold", "settle", "release", "first use")


def some(name: str, cases: list) -> list:
    if os.environ.get("CNIMETA_EVERY"):
        return cases
    return random.Random(name).sample(cases, min(SAMPLE, len(cases)))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SCENARIOS)
def test_next_command_finds_all_whole_when_a_process_is_killed_at_any_system_call(tmp_path, name):
    stage = Stage(name, str(tmp_path))
    stage.assert_recovers(stage.copy())  # what that imports is there by then: each import costs calls
    node = stage.copy()
    calls = tracing.calls(stage.command(node), node.folder, tracing.CHANGES, str(tmp_path / "trace"))
    assert len(calls) > 15, calls
    calls = calls if name in COMMON else some(name, calls)
    for call in calls:
        node = stage.copy()
        outcome = tracing.struck(stage.command(node), call, "signal=KILL")
        assert outcome.signal == 9, (call, outcome)
        stage.assert_recovers(node)
    print(f"{name}: killed at {len(calls)} system calls")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_command_answers_clean_when_any_system_call_fails(tmp_path, name):
    stage = Stage(name, str(tmp_path))
    stage.assert_recovers(stage.copy())  # what that imports is there by then: each import costs calls
    node = stage.copy()
    calls = tracing.calls(stage.command(node), node.folder, tuple(ERRORS), str(tmp_path / "trace"))
    cases = some(name, [(call, error) for call in calls for error in ERRORS[call.name]])
    answers: dict[str, int] = {}
    for call, error in cases:
        node = stage.copy()
        outcome = tracing.struck(stage.command(node), call, f"error={error}")
        assert outcome.answer is not None, (call, error, outcome)
        assert "crash" not in outcome.answer, (call, error, outcome)
        code = outcome.answer.get("error", [0])[0]
        assert code in (0, 11, 104), (call, error, outcome)
        answers[str(code)] = answers.get(str(code), 0) + 1
        stage.assert_recovers(node)
    print(f"{name}: {len(cases)} failed calls, answers {answers}")
