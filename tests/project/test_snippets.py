"""Every Python snippet of the guides is a whole program: it passes mypy's and pyright's strict types, and it runs.

The examples are checked with them, so that the public API is typed for whoever uses either checker.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.project, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
GUIDES = (
    "README.md",
    "docs/sdk.md",
    "docs/testing.md",
    "docs/runtime.md",
    "docs/upstream.md",
    "docs/portmap_backends.md",
    "docs/tutorials/game_fleet.md",
)
SNIPPETS = {
    f"{Path(guide).stem}_{number}": block
    for guide in GUIDES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", (ROOT / guide).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    )
}
EXAMPLES = [
    "examples/plugins/chained/cni_chained.py", "examples/plugins/tuning/cni_tuning.py", "examples/plugins/subnet_env.py",
]  # fmt: skip
WRONG = {
    "a record for an array": 'from cnimeta.spec.jsonio import dumps\nfrom cnimeta.spec.result import Result\ndumps({"prevResult": Result()})\n',
    "a misspelt change": 'from cnimeta.host.network.values import SetLink\nSetLink("eth0", mtuu=1)\n',
    "a verb without a result": (
        "from cnimeta.plugin import Plugin, Request\n"
        "class A(Plugin):\n    def add(self, request: Request) -> None: ...\n"
    ),
}
UNTYPED = "[mypy]\n[mypy-kubernetes.*,yaml]\nignore_missing_imports = True\nfollow_imports = skip\n"
"""As in pyproject.toml: mypy looks into the SDK here, which it would not where the SDK is installed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("snippets")
    (made / "mypy.ini").write_text(UNTYPED)
    for name, text in SNIPPETS.items():
        (made / f"{name}.py").write_text(text)
    for number, text in enumerate(WRONG.values()):
        (made / f"wrong_{number}.py").write_text(text)
    return made


@pytest.fixture(scope="module")
def checked(folder: Path) -> str:
    """What mypy says of all of them at once."""
    names = [*(str(path) for path in sorted(folder.glob("*.py"))), *(str(ROOT / name) for name in EXAMPLES)]
    environ = {**os.environ, "MYPYPATH": f"{ROOT}:{ROOT / 'typings'}"}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "mypy"), *names],
        cwd=folder, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "error:" in done.stdout, done.stdout + done.stderr
    return done.stdout


def test_snippets_and_examples_are_typed_when_mypy_is_strict(checked: str) -> None:
    assert len(SNIPPETS) > 12
    assert [line for line in checked.splitlines() if "error:" in line and "wrong_" not in line] == []


def test_snippets_and_examples_are_typed_and_mistakes_found_when_pyright_is_strict(folder: Path) -> None:
    """basedpyright is pyright with its own node in the wheel: it fetches nothing."""
    place = folder / "pyright"
    place.mkdir()
    for path in (*folder.glob("*.py"), *(ROOT / name for name in EXAMPLES)):
        (place / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT), str(ROOT / "typings")], "include": ["."]}
    (place / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    said = [
        (Path(one["file"]).name, one["message"]) for one in report["generalDiagnostics"] if one["severity"] == "error"
    ]
    assert report["summary"]["filesAnalyzed"] > 20
    assert [one for one in said if not one[0].startswith("wrong_")] == []
    assert {name for name, _ in said} == {f"wrong_{number}.py" for number in range(len(WRONG))}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_found_when_mypy_is_strict(checked: str, mistake: str) -> None:
    assert f"wrong_{list(WRONG).index(mistake)}.py" in checked


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_runs_when_it_is_a_program(folder: Path, name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(folder / f"{name}.py")],
        cwd=tmp_path, env={"CNI_COMMAND": "VERSION", "PATH": os.environ["PATH"]}, input="",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
