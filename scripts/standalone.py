"""cnimeta for nodes without Python: a folder with an interpreter, the locked packages and the code, and its archive.

    .venv/bin/python scripts/standalone.py dist

The folder runs wherever it is put. It is made of what this machine has: the distribution's CPython with the part of the
standard library that is used, the shared libraries that these need but for the C library, and the packages of
requirements.lock. So it runs on nodes whose C library is at least as new as this machine's symbols ask for, which
`standalone.json` in it says. Two runs on one machine give the same bytes; SOURCE_DATE_EPOCH is the date of all files.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dates import date

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[1]
SERIES = f"{sys.version_info.major}.{sys.version_info.minor}"
LEFT_OUT = (
    *(
        "test",
        "idlelib",
        "turtledemo",
        "tkinter",
        "lib2to3",
        "ensurepip",
        "venv",
        "pydoc_data",
        "distutils",
        "__pycache__",
    ),
    *("curses", "dbm", "config-*", "turtle.py", "antigravity.py", "this.py", "sitecustomize.py", "EXTERNALLY-MANAGED"),
    *("site-packages", "dist-packages", "LICENSE.txt", "_sysconfigdata__linux*"),
)
"""Of the standard library: what nothing here imports."""
MODULES_LEFT_OUT = re.compile(
    r"(_test|_xx|xx|_curses|_codecs_|_dbm|_gdbm|_tkinter|_crypt|_lsprof|audioop|nis|ossaudiodev|readline|spwd)"
)
PACKAGES_LEFT_OUT = ("kubernetes/aio",)
"""Of the packages: large, and imported by nothing here."""
C_LIBRARY = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv|nsl|anl))\.so\.\d+$")
"""Every node that runs programs has it, and no two may be mixed."""
START = f"""#!/bin/sh
# The cnimeta command of this folder, wherever that lies.
here=$(dirname "$(readlink -f "$0")")
exec "$here/python{SERIES}" -I -m cnimeta.cli.main "$@"
"""


def main() -> None:
    """The paths of the folder and of the archive on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to put the folder and its archive")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout whose code goes in (%(default)s)")
    args = parser.parse_args()
    os.umask(0o022)
    args.folder.mkdir(parents=True, exist_ok=True)
    made = build(args.folder.resolve(), args.source.resolve())
    print(made)
    print(archive(made))


def build(folder: Path, source: Path) -> Path:
    """The folder, whole or not there."""
    version = version_of(source)
    target = folder / f"cnimeta-{version}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".standalone-") as unfinished:
        work = Path(unfinished)
        made = work / target.name
        copy_python(interpreter(), made)
        install_packages(made, source, work)
        libraries = copy_libraries(made)
        copy_licences(made, libraries)
        start = made / "bin" / "cnimeta"
        start.write_text(START)
        start.chmod(0o755)
        compile_all(made)
        describe(made, version)
        set_dates(made)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    return target


def version_of(source: Path) -> str:
    found = re.search(r'^__version__ = "(.+)"$', (source / "cnimeta" / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"standalone: {source} has no version")
    return found[1]


def interpreter() -> str:
    """The distribution's, when it is of this series: it is linked for speed, and needs few libraries."""
    usual = f"/usr/bin/python{SERIES}"
    return usual if os.path.exists(usual) else os.path.realpath(sys._base_executable)  # type: ignore[attr-defined] # noqa: SLF001


def copy_python(python: str, made: Path) -> None:
    """The interpreter, and what is used of its standard library."""
    ask = (
        "import sysconfig, json;"
        "print(json.dumps([sysconfig.get_path('stdlib'), sysconfig.get_config_var('DESTSHARED')]))"
    )
    stdlib, dynamic = json.loads(subprocess.check_output([python, "-IB", "-c", ask]))
    (made / "bin").mkdir(parents=True)
    shutil.copy(os.path.realpath(python), made / "bin" / f"python{SERIES}")
    library = made / "lib" / f"python{SERIES}"
    shutil.copytree(stdlib, library, symlinks=False, ignore=shutil.ignore_patterns(*LEFT_OUT, "lib-dynload"))
    (library / "lib-dynload").mkdir()
    for module in sorted(Path(dynamic).glob("*.so")):
        if not MODULES_LEFT_OUT.match(module.name):
            shutil.copy(module, library / "lib-dynload")


def site(made: Path) -> Path:
    """Where this interpreter looks for packages: Debian's has another name for the folder."""
    python = made / "bin" / f"python{SERIES}"
    ask = "import site; print(site.getsitepackages()[-1])"
    return Path(subprocess.check_output([python, "-IB", "-c", ask], text=True).strip())


def install_packages(made: Path, source: Path, work: Path) -> None:
    """The locked packages, and this project as a wheel with the native launcher compiled in."""
    copy = work / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(source / name, copy)
    for name in ("cnimeta", "plugins"):
        shutil.copytree(source / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheels = work / "wheels"
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, copy, CNIMETA_PLATFORM_WHEEL="1")
    place = site(made)
    lock = source / "requirements.lock"
    into = ("--target", place, "--no-compile")
    # What is compiled here says nothing of the folder it was compiled in.
    pip(
        "install",
        "--require-hashes",
        "--no-build-isolation",
        *into,
        "-r",
        lock,
        CFLAGS="-g0 -O2",
        LDFLAGS="-Wl,--build-id=none",
    )
    pip("install", "--no-deps", "--no-index", *into, *wheels.glob("*.whl"))
    for name in ("bin", *PACKAGES_LEFT_OUT):
        shutil.rmtree(place / name, ignore_errors=True)
    for info in place.glob("*.dist-info"):
        for name in ("RECORD", "direct_url.json", "REQUESTED", "INSTALLER"):
            (info / name).unlink(missing_ok=True)


def pip(*words: str | Path, **environ: str) -> None:
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *map(str, words)]
    subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": str(date()), **environ})


def programs(made: Path) -> Iterator[Path]:
    """The ELF files."""
    for path in sorted(made.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def copy_libraries(made: Path) -> list[str]:
    """The shared libraries that anything in the folder needs, found relative to what needs them; where they were."""
    found: dict[str, str] = {}
    for path in programs(made):
        if (
            not os.path.relpath(path, made).startswith("lib/python")
            or "lib-dynload" in path.parts
            or is_compiled_here(path)
        ):
            for name, place in needed(path):
                if not C_LIBRARY.match(name):
                    found.setdefault(name, place)
    for name, place in found.items():
        shutil.copy(os.path.realpath(place), made / "lib" / name)
    for path in programs(made):
        if path.name == "launch":
            continue
        if any(name in found for name, _ in needed(path, quiet=True)) or path.parent.name == "lib-dynload":
            where = os.path.relpath(made / "lib", path.parent)
            subprocess.run(["patchelf", "--set-rpath", f"$ORIGIN/{where}", path], check=True)
    return list(found.values())


def is_compiled_here(path: Path) -> bool:
    """Wheels from an index bring their libraries along."""
    return path.name.startswith("libxtwrapper")


def needed(path: Path, *, quiet: bool = False) -> Iterator[tuple[str, str]]:
    """(name, path) of each library that the dynamic loader would load, of itself too."""
    told = subprocess.run(["ldd", path], check=False, capture_output=True, text=True).stdout
    for line in told.splitlines():
        match = re.match(r"\s*(\S+) => (\S+) \(0x", line)
        if match:
            yield match[1], match[2]
        elif "not found" in line and not quiet:
            print(f"standalone: {path.name}: {line.strip()}", file=sys.stderr)


def copy_licences(made: Path, libraries: Iterable[str]) -> None:
    """The terms of what was copied from the distribution, as it states them."""
    files = [interpreter(), *libraries]
    packages = set()
    for file in files:
        for name in dict.fromkeys((file, os.path.realpath(file), "/usr" + os.path.realpath(file))):
            told = subprocess.run(["dpkg-query", "-S", name], check=False, capture_output=True, text=True).stdout
            packages |= {line.partition(":")[0] for line in told.splitlines()}
    for package in sorted(packages):
        terms = Path("/usr/share/doc") / package / "copyright"
        if terms.exists():
            (made / "licences").mkdir(exist_ok=True)
            shutil.copyfile(terms, made / "licences" / package)
    shutil.copyfile(ROOT / "LICENSE", made / "LICENSE")


def compile_all(made: Path) -> None:
    """What is compiled is trusted unread: nobody edits the sources in here."""
    for cache in made.rglob("__pycache__"):
        shutil.rmtree(cache)
    program = (
        "import compileall, py_compile, sys;"
        "compileall.compile_dir(sys.argv[1], quiet=2, force=True, stripdir=sys.argv[1],"
        " invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
    )
    python = made / "bin" / f"python{SERIES}"
    subprocess.run([python, "-IB", "-c", program, made / "lib"], check=True, env={"PYTHONHASHSEED": "0"})


def describe(made: Path, version: str) -> None:
    """What it is, for who installs it: `cnimeta upgrade` tells two builds apart by the digest."""
    digest = hashlib.sha256()
    for path in sorted(made.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(made)}\0{path.stat().st_mode & 0o111}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    body = {
        "name": "cnimeta",
        "version": version,
        "digest": digest.hexdigest(),
        "python": subprocess.check_output(
            [made / "bin" / f"python{SERIES}", "-IB", "-c", "import platform; print(platform.python_version())"],
            text=True,
        ).strip(),
        "machine": platform.machine(),
        "glibc": newest_symbols(made),
    }
    (made / "standalone.json").write_text(json.dumps(body, indent=2) + "\n")


def newest_symbols(made: Path) -> str:
    """The version of the C library that is needed, by the symbols that are asked of it."""
    found = {(2, 17)}
    for path in programs(made):
        told = subprocess.run(
            ["readelf", "-W", "--version-info", path], check=False, capture_output=True, text=True
        ).stdout
        found |= {tuple(map(int, version.split("."))) for version in re.findall(r"\bGLIBC_(2\.\d+)", told)}
    return ".".join(map(str, max(found)))


def set_dates(made: Path) -> None:
    for path in [*made.rglob("*"), made]:
        os.chmod(path, 0o755 if path.is_dir() or path.stat().st_mode & 0o111 else 0o644)
        os.utime(path, (date(), date()))


def archive(made: Path) -> Path:
    """`tar.gz` of the folder, the same bytes each time."""
    path = made.with_name(f"{made.name}-linux-{platform.machine()}.tar.gz")
    unfinished = path.with_name(f".{path.name}")
    with (
        unfinished.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for file in [made, *sorted(made.rglob("*"))]:
            entry = tar.gettarinfo(str(file), str(file.relative_to(made.parent)))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            entry.type = tarfile.DIRTYPE if file.is_dir() else tarfile.REGTYPE
            entry.size = 0 if file.is_dir() else file.stat().st_size
            entry.linkname = ""
            tar.addfile(entry, None if file.is_dir() else io.BytesIO(file.read_bytes()))
    unfinished.rename(path)
    return path


if __name__ == "__main__":
    main()
