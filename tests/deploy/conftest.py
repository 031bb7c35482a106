"""Virtual environments are made as tests/runtime makes them, containers as tests/hostport_alloc does."""

from __future__ import annotations

import sys
from pathlib import Path

for neighbour in ("project", "runtime", "hostport_alloc"):
    sys.path.append(str(Path(__file__).parents[1] / neighbour))
