"""CNI_ARGS: `KEY=VALUE;KEY=VALUE`. The order varies from call to call; values are untrusted."""

from __future__ import annotations

from cnimeta.errors import InvalidEnvironment, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_TRUE = ("1", "t", "true")
_FALSE = ("0", "f", "false")

MAX_CHARACTERS = 64 * 1024
KUBERNETES = ("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID")
"""The keys kubelet's runtimes send."""


def parse(text: str, *, strict: bool = True) -> dict[str, str]:
    """Read CNI_ARGS; it may end in `;`.

    More than MAX_CHARACTERS, a pair without `=` is InvalidEnvironment (code 4), or skipped when not `strict` (for DEL).
    """
    if len(text) > MAX_CHARACTERS:
        if not strict:
            return {}
        raise InvalidEnvironment(f"CNI_ARGS has {len(text)} characters, at most {MAX_CHARACTERS} are read")
    pairs: dict[str, str] = {}
    text = text.removesuffix(";")
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            if not strict:
                continue
            raise InvalidEnvironment(f"CNI_ARGS: invalid pair {shown(pair)}, expected KEY=VALUE")
        pairs[key] = value
    return pairs


def require_known(args: Mapping[str, str], known: Collection[str]) -> None:
    """Refuse keys a plugin does not understand unless IgnoreUnknown is set, as the reference's LoadArgs does."""
    flag = args.get("IgnoreUnknown", "").lower()
    if flag not in (*_TRUE, *_FALSE, ""):
        raise InvalidEnvironment(f"CNI_ARGS: IgnoreUnknown must be true or false, got {shown(flag)}")
    unknown = sorted(set(args) - set(known) - {"IgnoreUnknown"})
    if unknown and flag not in _TRUE:
        raise InvalidEnvironment(
            f"CNI_ARGS: unknown keys {', '.join(shown(key) for key in unknown)} (IgnoreUnknown is not set)"
        )
