"""`pip install` in place, under load: every start is served by one version, whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from places import Place, run
from source_copy import copy_source

from cnimeta import __version__

pytestmark = [pytest.mark.project, pytest.mark.timeout(3600)]

STARTS = int(os.environ.get("CNIMETA_STARTS", "150"))
"""The full run: CNIMETA_STARTS=5000."""
ENVIRON = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/usr/lib/cni", "PATH": os.environ["PATH"]}


def wheel(folder: Path, version: str) -> Path:
    source = copy_source(folder / version)
    init = source / "cnimeta" / "__init__.py"
    init.write_text(init.read_text().replace(__version__, version))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-index", "--no-deps"]
    run(*pip, "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    return next(folder.glob(f"cnimeta-{version}-*.whl"))


def test_no_start_fails_when_pip_replaces_the_installation_in_place(tmp_path: Path) -> None:
    wheels = [wheel(tmp_path, version) for version in ("0.1.7", "0.2.0")]
    place = Place(tmp_path)
    place.install(str(wheels[0]))
    folder = place.launchers()
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "hostport_alloc", "dataDir": str(tmp_path / "state")}
    conf["expose"], conf["portmap"] = ["80/tcp"], {"type": "portmap"}
    seen, failed = Counter[str](), []
    over = threading.Event()

    def at_work() -> bool:
        return not list(place.site.glob("cnimeta-*.dist-info/RECORD"))

    def start_again() -> None:
        """hostport_alloc asks portmap, which runs in its process."""
        while not over.is_set():
            began = at_work()
            words = {"input": json.dumps(conf).encode(), "env": {**ENVIRON, "CNI_PATH": str(folder)}}
            done = subprocess.run([folder / "hostport_alloc"], check=False, capture_output=True, timeout=60, **words)
            seen["pip at work" if began or at_work() else "between"] += 1
            if done.returncode:
                failed.append((done.stdout, done.stderr))

    threads = [threading.Thread(target=start_again) for _ in range(3)]
    for thread in threads:
        thread.start()
    upgrades = 0
    try:
        while sum(seen.values()) < STARTS or upgrades < 2:
            upgrades += 1
            place.replace(str(wheels[upgrades % 2 if upgrades % 3 else (upgrades - 1) % 2]))  # the same one, too
            place.launchers()
            time.sleep(0.2)
            print(f"{sum(seen.values())} starts, {upgrades} times pip: {dict(seen)}, {len(failed)} failed", flush=True)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert seen["pip at work"] > 0
