"""What pyproject.toml cannot say: with CNIMETA_PLATFORM_WHEEL=1 the wheel is one for this platform, and has the native
launcher compiled in it, for nodes without a compiler. Otherwise it is for every platform.
"""

from __future__ import annotations

import os
import sys

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class BuildWithLauncher(build_py):
    """Adds `cnimeta/agent/launch`."""

    def run(self) -> None:
        """As build_py."""
        super().run()
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        from cnimeta.agent.native import compiled

        path = os.path.join(self.build_lib, "cnimeta", "agent", "launch")
        with open(path, "wb") as file:
            file.write(compiled())
        os.chmod(path, 0o755)  # noqa: S103 - programs are for everybody to run


class PlatformWheel(bdist_wheel):
    """Of any Python 3, for one platform."""

    def finalize_options(self) -> None:
        """As bdist_wheel."""
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        """As bdist_wheel."""
        return "py3", "none", super().get_tag()[2]


if os.environ.get("CNIMETA_PLATFORM_WHEEL", "") not in ("", "0"):
    setup(cmdclass={"build_py": BuildWithLauncher, "bdist_wheel": PlatformWheel})
else:
    setup()
