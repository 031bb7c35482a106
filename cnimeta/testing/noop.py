"""A plugin executable that does what a JSON file says and writes down what it was asked.

`write_noop(folder, name, script)` makes the executable; it reads `<name>.json` beside it at every call:

    {"supportedVersions": ["1.0.0", "1.1.0"],
     "ADD": {"result": {...}},                      stdout is the result (default: prevResult as received, or {})
     "DEL": {"code": 11, "msg": "try again"},       an error object, exit status 1
     "CHECK": {"stdout": "text", "exit": 3, "stderr": "words", "sleep": 0.5}}

and appends one line per call to `<name>.calls`: {"environ": {CNI_*...}, "stdin": "..."}. `received` reads them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

from cnimeta.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.spec.jsonio import JSON

_VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


class Received(NamedTuple):
    """One call of a noop plugin."""

    environ: dict[str, str]
    stdin: str

    @property
    def verb(self) -> str:
        """CNI_COMMAND."""
        return self.environ.get("CNI_COMMAND", "")

    @property
    def conf(self) -> dict[str, JSON]:
        """The configuration."""
        conf: dict[str, JSON] = json.loads(self.stdin)
        return conf


def write_noop(folder: str, name: str, script: Mapping[str, JSON] | None = None) -> str:
    """Make the executable `name` in `folder`, steered by `script`. Returns its path."""
    path = os.path.join(folder, name)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.append({package!r})\n"
            "from cnimeta.testing.noop import serve\nserve(__file__)\n"
        )
    os.chmod(path, 0o755)  # noqa: S103 - an executable for everyone, as plugins are
    steer(path, script or {})
    return path


def steer(path: str, script: Mapping[str, JSON]) -> None:
    """Change what the noop plugin at `path` does."""
    with open(path + ".json", "w", encoding="utf-8") as file:
        json.dump(script, file)


def received(path: str) -> list[Received]:
    """What the noop plugin at `path` was asked so far."""
    if not os.path.exists(path + ".calls"):
        return []
    with open(path + ".calls", encoding="utf-8") as file:
        return [Received(**json.loads(line)) for line in file]


def serve(path: str) -> None:
    """The executable's body: record the call, answer as steered, exit."""
    stdin = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    with open(path + ".json", encoding="utf-8") as file:
        script = json.load(file)
    environ = {key: value for key, value in os.environ.items() if key.startswith("CNI_")}
    with open(path + ".calls", "a", encoding="utf-8") as file:
        file.write(json.dumps({"environ": environ, "stdin": stdin}) + "\n")
    verb = environ.get("CNI_COMMAND", "")
    behaviour = script.get(verb, {})
    time.sleep(behaviour.get("sleep", 0))
    sys.stderr.write(behaviour.get("stderr", ""))
    sys.stdout.write(_answer(verb, script, behaviour, stdin))
    sys.stdout.flush()
    sys.exit(behaviour.get("exit", 1 if "code" in behaviour else 0))


def _answer(verb: str, script: dict[str, JSON], behaviour: dict[str, JSON], stdin: str) -> str:
    if "stdout" in behaviour:
        return str(behaviour["stdout"])
    if "code" in behaviour:
        return json.dumps({"cniVersion": "1.1.0", "code": behaviour["code"], "msg": behaviour.get("msg", "")})
    if verb == "VERSION":
        return json.dumps({"cniVersion": "1.1.0", "supportedVersions": script.get("supportedVersions", _VERSIONS)})
    if verb != "ADD":
        return ""
    conf = json.loads(stdin)
    result = behaviour.get("result", conf.get("prevResult") or {})
    return json.dumps({**result, "cniVersion": conf.get("cniVersion", "0.1.0")} if isinstance(result, dict) else result)
