"""`make demo`: exit 0 when every check passed, 1 when one failed, 2 when it could not go on, 130 after Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from demo.report import Report
from demo.stage import raised
from demo.story import Story


def main() -> int:
    """Tell the story on a stage that is taken down at the end."""
    if os.geteuid() != 0:
        sys.stderr.write("the demo makes network namespaces: run it as root\n")
        return 2
    started = time.monotonic()
    report = Report()
    try:
        with raised() as stage:
            Story(stage, report).tell()
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; everything the demo made has been removed\n")
        return 130
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"\nthe demo could not go on: {' '.join(error.cmd)}: {error.stderr}\n")
        return 2
    except (RuntimeError, OSError) as error:
        sys.stderr.write(f"\nthe demo could not go on: {error}\n")
        return 2
    report.step(f"Done in {time.monotonic() - started:.0f} s; the namespaces and the folder are removed")
    for claim in report.failed:
        report.say(f"FAILED  {claim}")
    report.say(f"{report.passed} checks passed, {len(report.failed)} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
