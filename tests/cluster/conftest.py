"""The cluster stands on the node with containerd that tests/containerd makes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "containerd"))
