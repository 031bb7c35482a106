"""What a release has: sdist, a wheel for every platform, one for this platform with the native launcher, and an SBOM.

    .venv/bin/python scripts/dist.py dist

The wheels are built from the sdist, offline, with the locked setuptools. The version is the one in
cnimeta/__init__.py, so that a clone without tags builds too; the release workflow refuses a tag that says another. Two
runs give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from dates import date

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "CHANGELOG.md", "LICENSE", "requirements.lock")
PACKAGES = ("cnimeta", "plugins")
_BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))"


def main() -> None:
    """The paths of what was made on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to put it")
    args = parser.parse_args()
    os.umask(0o022)  # archives keep the modes of files
    args.folder.mkdir(parents=True, exist_ok=True)
    for path in build(args.folder.resolve()):
        print(path)


def build(folder: Path) -> list[Path]:
    """Everything."""
    with tempfile.TemporaryDirectory() as unfinished:
        work = Path(unfinished)
        copy = work / "source"
        copy.mkdir()
        for name in SOURCES:
            shutil.copy(ROOT / name, copy)
        for name in PACKAGES:
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        raw = work / _made(copy, "sdist", work)
        sdist = folder / raw.name
        repack(raw, sdist)
        with tarfile.open(sdist) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian 12's Python has none
            tar.extractall(work)
        unpacked = work / sdist.name.removesuffix(".tar.gz")
        names = [_made(unpacked, "wheel", folder)]
        shutil.rmtree(unpacked / "build", ignore_errors=True)
        names.append(_made(unpacked, "wheel", folder, CNIMETA_PLATFORM_WHEEL="1"))
    version = sdist.name.removeprefix("cnimeta-").removesuffix(".tar.gz")
    bill = folder / f"cnimeta-{version}.cdx.json"
    bill.write_text(json.dumps(sbom(version, (ROOT / "requirements.lock").read_text()), indent=2) + "\n")
    return [sdist, *(folder / name for name in names), bill]


def _made(source: Path, kind: str, folder: Path, **environ: str) -> str:
    """The name of what the build backend makes of a source folder."""
    command = [sys.executable, "-c", _BUILD.format(kind), str(folder)]
    given = {**os.environ, "SOURCE_DATE_EPOCH": str(date()), **environ}
    done = subprocess.run(command, cwd=source, check=False, capture_output=True, text=True, env=given)
    if done.returncode:
        raise SystemExit(f"dist: {kind}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def repack(source: Path, target: Path) -> None:
    """A tar.gz with the same files, whose dates, owners, modes and order are always the same."""
    with (
        tarfile.open(source) as given,
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for entry in sorted(given.getmembers(), key=lambda one: one.name):
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = date()
            entry.mode = 0o755 if entry.isdir() else 0o644
            entry.pax_headers = {}
            tar.addfile(entry, given.extractfile(entry) if entry.isfile() else None)


def sbom(version: str, lock: str) -> dict[str, Any]:
    """CycloneDX 1.5 of what is installed with this version: the packages of the lock, and the hashes of their files."""
    components = []
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        found = re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", entry)
        if found is None:
            continue
        purl = f"pkg:pypi/{found[1].lower()}@{found[2]}"
        hashes = sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
        components.append(
            {
                "type": "library",
                "bom-ref": purl,
                "name": found[1],
                "version": found[2],
                "purl": purl,
                "properties": [{"name": "cnimeta:file-sha256", "value": value} for value in hashes],
            }
        )
    own = f"pkg:pypi/cnimeta@{version}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": own,
                "name": "cnimeta",
                "version": version,
                "purl": own,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components,
        "dependencies": [{"ref": own, "dependsOn": [one["bom-ref"] for one in components]}],
    }


if __name__ == "__main__":
    main()
