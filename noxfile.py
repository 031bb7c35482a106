"""The supported matrix as one command: `make matrix`. It runs as far as the machine has interpreters and an index.

Each session installs the lowest or the highest versions that pyproject.toml allows, and runs the tests that need no
root. What the machine has no interpreter for is said and passed over; kernel tests are `make test`, on its own Python.
"""

from __future__ import annotations

import os
import re
import tomllib

import nox

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
WITH = os.path.dirname(os.path.abspath(__file__))
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "cryptography", "setuptools")
nox.options.default_venv_backend = "venv"


def lowest() -> list[str]:
    """The dependencies, each at the version that pyproject.toml asks for at least."""
    with open(os.path.join(WITH, "pyproject.toml"), "rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    return [
        re.sub(r">=(\d+(\.\d+)*)", lambda found: f"=={found[1]}" if "." in found[1] else f"=={found[1]}.*", one)
        for one in wanted
    ]


@nox.session(python=PYTHONS)
@nox.parametrize("dependencies", ["lowest", "highest"])
def unit(session: nox.Session, dependencies: str) -> None:
    """Pure tests."""
    session.install(*TOOLS, *(lowest() if dependencies == "lowest" else []), "--editable", ".")
    session.run("pytest", "-q", "-m", "unit", "-p", "no:cacheprovider", *session.posargs)
