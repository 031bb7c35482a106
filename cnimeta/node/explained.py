"""What is known of a word an operator meets: a key of a configuration, a plugin, an error code."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cnimeta import errors
from cnimeta.errors import CniError
from cnimeta.plugin.described import Key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cnimeta.plugin.base import Plugin

SPEC = "network"
"""What the keys of the specification are listed under."""

KEYS = (
    Key(
        ("cniVersion",),
        "version",
        "0.1.0",
        "the version of the specification the network is written for",
        schema={"type": "string"},
    ),
    Key(
        ("cniVersions",),
        "array of versions",
        "none",
        "others it can be run with; the highest that is known counts",
        schema={"type": "array", "items": {"type": "string"}},
    ),
    Key(
        ("name",),
        "text",
        "required",
        "the network's name: letters, digits, `_`, `.`, `-`",
        schema={"type": "string", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.\\-]*$"},
    ),
    Key(
        ("plugins",),
        "array of plugin configurations",
        "required",
        "run in order on ADD, backwards on DEL",
        schema={"type": "array", "minItems": 1},
    ),
    Key(
        ("disableCheck",),
        "boolean",
        "false",
        "the runtime asks no CHECK",
        schema={"type": ["boolean", "string"]},
    ),
    Key(
        ("disableGC",),
        "boolean",
        "false",
        "the runtime asks no GC",
        schema={"type": ["boolean", "string"]},
    ),
    Key(
        ("loadOnlyInlinedPlugins",),
        "boolean",
        "false",
        "no plugins from the folder of the network's name",
        schema={"type": ["boolean", "string"]},
    ),
    Key(
        ("plugins[].type",),
        "text",
        "required",
        "the plugin's executable, looked for in CNI_PATH",
        schema={"type": "string"},
    ),
    Key(
        ("plugins[].capabilities",),
        "object: name to true",
        "none",
        "what the plugin wants of the runtime: `portMappings`, `bandwidth`, `io.kubernetes.cri.pod-annotations`",
        schema={"type": "object", "additionalProperties": {"type": "boolean"}},
    ),
    Key(
        ("plugins[].runtimeConfig",),
        "object",
        "the runtime's",
        "what came of the capabilities",
        schema={"type": "object"},
    ),
    Key(
        ("plugins[].prevResult",),
        "object",
        "the runtime's",
        "what the plugins before it made",
        schema={"type": "object"},
    ),
    Key(
        ("plugins[].ipam",),
        "plugin configuration",
        "none",
        "the plugin that gives addresses",
        schema={"type": "object"},
    ),
    Key(
        ("plugins[].dns",),
        "object",
        "none",
        "name servers, for plugins that pass them on",
        schema={"type": "object"},
    ),
    Key(
        ("plugins[].args",),
        "object",
        "none",
        "the runtime's own; plugins may ignore it",
        schema={"type": "object"},
    ),
)
"""Of a network configuration list (spec section 1)."""

_REMEDIES = {
    1: "change cniVersion to one that both the runtime and the plugin speak: `cnimeta run version` asks the plugins",
    2: "take the key out, or give it another value",
    3: "nothing: there is nothing to clean up",
    4: "the runtime's: it left a CNI_ variable out; on the command line, an option is wrong",
    5: "the message has the host's own words; `cnimeta doctor` looks at what the plugins need",
    6: "the document is not JSON, or a part of it has another form: `cnimeta validate FILE`",
    7: "correct the key that the message names: `cnimeta explain KEY`, `cnimeta validate FILE`",
    8: "the runtime's: the container has no network namespace of its own, so it needs no plugin",
    11: "nothing, the runtime tries again; when a range is exhausted, widen it: `cnimeta ports top`",
    50: "the message says what is missing; `cnimeta doctor` looks for it",
    51: "containers that run may have lost connectivity; the message says why",
    100: "`cnimeta ports list --range PORT` says who has the port",
    101: "`cnimeta ports check` lists what is missing, `cnimeta ports repair` puts it back",
    102: "the API server, the credentials or the role: the message has its answer. `policy: deferred` does not wait",
    103: "nothing: the kubelet goes on with the Pod that is there now",
    104: "free space, or make the folder root's alone: the message has owner and mode",
    105: "the plugin that the message names is missing, hangs, or answered with something else than a result",
    106: "look at what the hook says, start it, or set notify.policy to deferred; `cnimeta ports deliver` tries again",
    999: "a defect of the plugin: please report it, `details` has module and line; `cnimeta sysdump` has the rest",
}


class Code(NamedTuple):
    """An error code."""

    code: int
    name: str
    about: str
    remedy: str


def codes() -> Iterator[Code]:
    """Every error code that a plugin of ours answers with, by number."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CniError)]
    for kind in sorted(kinds, key=lambda kind: kind.code):
        if kind is not CniError:
            about = " ".join((kind.__doc__ or "").split())
            yield Code(kind.code, kind.__name__, about, _REMEDIES[kind.code])


class Told(NamedTuple):
    """A key and whose it is."""

    plugin: str
    """A plugin's type, or SPEC."""
    key: Key


def keys(plugins: Mapping[str, Plugin]) -> list[Told]:
    """Every key that is described: the specification's, then each plugin's."""
    found = [Told(SPEC, key) for key in KEYS]
    for name, plugin in plugins.items():
        found += [Told(name, key) for key in plugin.describe()]
    return found


def matching(word: str, known: list[Told]) -> list[Told]:
    """The keys that `word` means: a key, `PLUGIN.KEY`, or PLUGIN for all of its keys."""
    owner, _, rest = word.partition(".")
    return [
        told
        for told in known
        if told.key.is_called(word) or told.plugin == word or (told.plugin == owner and told.key.is_called(rest))
    ]


def near(word: str, known: list[Told]) -> list[str]:
    """What may have been meant."""
    from difflib import get_close_matches

    names = {name.rpartition(".")[2].lower(): name for told in known for name in told.key.names}
    return [names[found] for found in get_close_matches(word.lower()[:64], names, 3)]
