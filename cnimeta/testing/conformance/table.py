"""What is tested, in order: each rule in words, with the sentence of the specification that it follows.

The sentences are those of SPEC.md 1.1.0 (https://www.cni.dev/docs/spec/); section numbers count as there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnimeta.namedtuple import NamedTuple
from cnimeta.testing.conformance.rules import Rules

if TYPE_CHECKING:
    from collections.abc import Callable


class Rule(NamedTuple):
    """One rule: what it says, where it comes from, how it is tested."""

    words: str
    clause: str
    test: Callable[[Rules], None]
    sentence: str
    """What the specification says, to the letter; for what is not in it, where else it comes from."""


RULES = (
    Rule(
        "VERSION answers with the supported versions, needing no other variable",
        "§2 VERSION",
        Rules.version_answers,
        "The plugin should output via standard-out a json-serialized version result object (see below).",
    ),
    Rule(
        "VERSION echoes the cniVersion it is asked in",
        "§2 VERSION",
        Rules.version_echoes,
        "cniVersion: The value of cniVersion specified on input",
    ),
    Rule(
        "an unknown CNI_COMMAND is error 4",
        "§5 Error",
        Rules.command_unknown,
        "4|Invalid necessary environment variables, like CNI_COMMAND, CNI_CONTAINERID, etc.",
    ),
    Rule(
        "a missing variable is error 4",
        "§2 Parameters",
        Rules.environment_missing,
        "The error message must contain the names of invalid variables.",
    ),
    Rule(
        "an invalid container ID or ifname is error 4",
        "§2 Parameters",
        Rules.environment_invalid,
        "Must start with an alphanumeric character, optionally followed by any combination of one or more alphanumeric "
        "characters, underscore (), dot (.) or hyphen (-).",
    ),
    Rule(
        "CNI_PATH is not required for ADD",
        "§2 ADD",
        Rules.path_is_optional,
        "Optional environment parameters: - CNI_ARGS - CNI_PATH",
    ),
    Rule(
        "ADD into the plugin's own namespace fails with one document",
        "§5 Error",
        Rules.own_namespace,
        "A plugin must exit with a return code of 0 on success, and non-zero on failure.",
    ),
    Rule(
        "an undecodable configuration is error 6",
        "§5 Error",
        Rules.stdin_undecodable,
        "6|Failed to decode content. For example, failed to unmarshal network config from bytes or failed to decode "
        "version info from string.",
    ),
    Rule(
        "a missing or invalid network name is error 7",
        "§1, §5 Error",
        Rules.name_required,
        "7|Invalid network config. If some validations on network configs do not pass, this error will be raised.",
    ),
    Rule(
        "a cniVersion that is not supported is error 1",
        "§5 Error",
        Rules.version_unknown,
        "1|Incompatible CNI version",
    ),
    Rule(
        "ADD of a chained plugin without prevResult has a specific code",
        "§5 Error",
        Rules.prev_result_required,
        "Error codes 0-99 are reserved for well-known errors. Values of 100+ can be freely used for plugin specific "
        "errors.",
    ),
    Rule(
        "keys match in any case, as containerd sends them",
        "Go's JSON rules",
        Rules.keys_in_any_case,
        "not in the specification: encoding/json matches the keys of structs in any case, and runtimes rely on it",
    ),
    Rule(
        "ADD works in every supported version and answers in it",
        "§5 Success",
        Rules.add_in_every_version,
        'cniVersion: The same version supplied on input - the string "1.1.0"',
    ),
    Rule(
        "CHECK succeeds after ADD and prints nothing",
        "§2 CHECK",
        Rules.check_sees,
        "CHECK is a way for a runtime to probe the status of an existing container.",
    ),
    Rule(
        "CHECK fails, with a specific code, when nothing is there",
        "§2 CHECK",
        Rules.check_misses,
        "The plugin should return an error if other resources not tracked in the Result type such as the following are "
        "missing or are in an invalid state",
    ),
    Rule(
        "a verb newer than the configuration's version is error 1",
        "§2",
        Rules.verbs_by_version,
        "1|Incompatible CNI version",
    ),
    Rule(
        "DEL can be repeated and prints nothing",
        "§2 DEL",
        Rules.delete_repeats,
        "Plugins MUST accept multiple DEL calls for the same (CNI_CONTAINERID, CNI_IFNAME) pair, and return success if "
        "the interface in question, or any modifications added, are missing.",
    ),
    Rule(
        "DEL works without prevResult",
        "§2 DEL",
        Rules.delete_without_prev_result,
        "Plugins should still return without error if prevResult is empty for a DEL command, however.",
    ),
    Rule(
        "DEL works without the namespace",
        "§2 DEL",
        Rules.delete_without_netns,
        "plugins should always complete a DEL action without error to the fullest extent possible, even if some "
        "resources or state are missing.",
    ),
    Rule(
        "DEL works without runtimeConfig",
        "§2 DEL",
        Rules.delete_without_runtime_config,
        "plugins should always complete a DEL action without error to the fullest extent possible, even if some "
        "resources or state are missing.",
    ),
    Rule(
        "GC frees what is not listed",
        "§2 GC",
        Rules.gc_frees,
        "A plugin SHOULD remove as many stale resources as possible.",
    ),
    Rule(
        "GC keeps what is listed, and everything without a list",
        "§2 GC",
        Rules.gc_keeps,
        "cni.dev/valid-attachments (array of objects): The list of still valid attachments to this network",
    ),
    Rule(
        "STATUS is silent, or fails with 50 or 51",
        "§2 STATUS",
        Rules.status_answers,
        "A plugin must exit with a zero (success) return code if the plugin is ready to service ADD requests.",
    ),
)
