"""`cnimeta doctor` on this machine: it only looks, and its status tells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cnimeta.cli.install import install
from cnimeta.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.kernel


def test_everything_is_found_when_the_launchers_are_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(str(tmp_path), ["portmap", "bandwidth", "hostport_alloc"])
    assert main(["doctor", "--bin-dir", str(tmp_path), "--json"]) == 0
    found = {entry["what"]: entry["state"] for entry in json.loads(capsys.readouterr().out)}
    assert {found[f"launcher {name}"] for name in ("portmap", "bandwidth", "hostport_alloc")} == {"ok"}
    assert found["nftables"] == found["iptables"] == found["state"] == "ok"


def test_missing_launchers_are_told_when_the_folder_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "portmap").write_text("#!/bin/sh\n")
    main(["doctor", "--bin-dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("warn") and "not of this installation" in line for line in lines)
    assert sum("cnimeta install" in line for line in lines) == 2
