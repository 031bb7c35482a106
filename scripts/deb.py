"""A Debian package of a standalone folder: scripts/standalone.py makes the folder, dpkg-deb the package.

    .venv/bin/python scripts/deb.py dist/cnimeta-0.1.0 dist

The package holds the folder in /usr/lib/cnimeta, the units of deploy/, manual pages and completion. What runs is a copy
in /opt/cnimeta/VERSION, of hard links, which `cnimeta upgrade` makes and switches to: dpkg removes old files before a
new package is configured, and a container that starts meanwhile needs them. Two runs give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = "usr/lib/cnimeta"
UNITS = "usr/lib/systemd/system"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
CONTROL = """Package: cnimeta
Version: {version}
Architecture: {architecture}
Maintainer: The cnimeta authors <cnimeta@localhost>
Installed-Size: {kilobytes}
Depends: libc6 (>= {glibc})
Recommends: nftables, conntrack
Section: net
Priority: optional
Description: CNI plugins: random host ports, port mappings, traffic shaping
 hostport_alloc gives each container a random free host port for every port
 that it exposes; portmap and bandwidth are meta plugins on nftables, iptables
 and traffic control. The package brings its own Python.
"""
POSTINST = """#!/bin/sh
# A copy beside the version that runs, then the switch: nothing is stopped.
set -e
if [ "$1" = configure ]; then
  /usr/lib/cnimeta/bin/cnimeta upgrade --link || {
    echo "cnimeta: the plugins were not switched, see above; then run: /usr/lib/cnimeta/bin/cnimeta upgrade --link" >&2
  }
  if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
fi
"""
PRERM = """#!/bin/sh
# It stays while containers or configurations need it: `cnimeta uninstall` names them.
set -e
if [ "$1" = remove ] && [ -x /opt/cnimeta/current/bin/cnimeta ]; then
  if [ -d /run/systemd/system ]; then
    systemctl disable --now cnimeta-agent.socket cnimeta-agent.service cnimeta-own.service cnimeta-metrics.timer || true
  fi
  /opt/cnimeta/current/bin/cnimeta uninstall
fi
"""
POSTRM = """#!/bin/sh
set -e
if [ "$1" = remove ] || [ "$1" = purge ]; then
  for made in /opt/cnimeta/*/standalone.json; do
    [ ! -e "$made" ] || rm -rf "${made%/standalone.json}"
  done
  rm -f /opt/cnimeta/current /opt/cnimeta/previous /opt/cnimeta/.lock
  rmdir /opt/cnimeta 2>/dev/null || true
fi
if [ "$1" = purge ]; then
  rm -rf /var/lib/cni/cnimeta
fi
"""


def main() -> None:
    """The package's path on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("standalone", type=Path, help="a standalone folder")
    parser.add_argument("folder", type=Path, help="where to put the package")
    args = parser.parse_args()
    os.umask(0o022)  # archives keep the modes of files
    print(package(args.standalone.resolve(), args.folder.resolve()))


def package(standalone: Path, folder: Path) -> Path:
    """Build it."""
    about = json.loads((standalone / "standalone.json").read_text())
    architecture = ARCHITECTURES[about["machine"]]
    made = folder / f"cnimeta_{about['version']}_{architecture}.deb"
    date = int(standalone.stat().st_mtime)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".deb-") as unfinished:
        root = Path(unfinished) / "root"
        shutil.copytree(standalone, root / HOME, copy_function=_linked)
        (root / UNITS).mkdir(parents=True)
        for unit in sorted((ROOT / "deploy").glob("cnimeta-*.*")):
            if unit.suffix in (".service", ".socket", ".timer"):
                shutil.copy(unit, root / UNITS)
        _texts(root, standalone)
        _control(root, about, architecture)
        for path in [*root.rglob("*"), root]:
            os.utime(path, (date, date), follow_symlinks=False)
        command = ["dpkg-deb", "--root-owner-group", "--threads-max=1", "-Zxz", "-z3", "--build", root, made]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": str(date)})
    return made


def _linked(source: str, target: str) -> None:
    os.link(source, target)


def _texts(root: Path, standalone: Path) -> None:
    """The command on the path, its manual pages and its completion."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/cnimeta").symlink_to("/opt/cnimeta/current/bin/cnimeta")
    command = standalone / "bin" / "cnimeta"
    pages = root / "usr/share/man/man1"
    subprocess.run([command, "man", "--output", pages], check=True, capture_output=True)
    for shell, place in (
        ("bash", "usr/share/bash-completion/completions/cnimeta"),
        ("zsh", "usr/share/zsh/vendor-completions/_cnimeta"),
        ("fish", "usr/share/fish/vendor_completions.d/cnimeta.fish"),
    ):
        path = root / place
        path.parent.mkdir(parents=True)
        path.write_text(subprocess.check_output([command, "completion", shell], text=True))
    terms = root / "usr/share/doc/cnimeta/copyright"
    terms.parent.mkdir(parents=True)
    shutil.copy(ROOT / "LICENSE", terms)


def _control(root: Path, about: dict[str, str], architecture: str) -> None:
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    (root / "DEBIAN").mkdir()
    text = CONTROL.format(**about, architecture=architecture, kilobytes=size // 1024)
    (root / "DEBIAN" / "control").write_text(text)
    for name, script in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
        path = root / "DEBIAN" / name
        path.write_text(script)
        path.chmod(0o755)


if __name__ == "__main__":
    main()
