"""The documentation builds as a site without a warning, and its generated pages say what the code says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.project, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def generated() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "site" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.pages()
    return pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-c",
        str(DOCS / "site"),
        str(ROOT),
        str(made),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


def test_the_generated_pages_are_those_of_the_code() -> None:
    for name, text in generated().items():
        assert (DOCS / "reference" / name).read_text("utf-8") == text, f"{name}: run docs/site/generate.py"


def test_every_page_is_reached_from_the_index() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    listed = {
        (DOCS / f"{line}.md").resolve()
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", index, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if line and not line.startswith(":")
    }
    assert {path for path in DOCS.rglob("*.md") if path.name != "index.md"} <= listed


def test_the_site_builds_without_a_warning_and_can_be_searched(site: Path) -> None:
    for page in ("docs/index", "docs/hostport_alloc", "docs/reference/errors", "docs/reference/api"):
        assert (site / f"{page}.html").exists()
    words = (site / "searchindex.js").read_text("utf-8")
    assert "quarantinesecond" in words
    api = (site / "docs" / "reference" / "api.html").read_text("utf-8")
    assert "require_prev_result" in api
