"""podman runs on a node like the one that containerd has in tests/containerd."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "containerd"))
