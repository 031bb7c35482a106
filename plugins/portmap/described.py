"""The keys of portmap for `cnimeta explain`; the tables of docs/portmap.md say the same. Pure."""

from __future__ import annotations

from cnimeta.plugin.described import Key

KEYS = (
    Key(
        ("backend",),
        "text",
        "`auto`",
        (
            "`nftables`, `iptables`, or `auto`: nftables where the kernel has it and takes the base (tried while the "
            "table is missing), and no key needs iptables; else iptables"
        ),
        schema={"type": "string", "enum": ["auto", "nftables", "iptables"]},
    ),
    Key(
        ("snat",),
        "boolean",
        "true",
        "masquerade hairpin connections, those from the container's subnet and those from this host's 127.0.0.1",
        schema={"type": "boolean"},
    ),
    Key(
        ("masqAll",),
        "boolean",
        "false",
        "masquerade every mapped connection; nothing when `snat` is false",
        schema={"type": "boolean"},
    ),
    Key(
        (
            "conditionsV4",
            "conditionsV6",
        ),
        "array of text",
        "none",
        (
            "what a packet must match besides, per container; in the backend's own language. In nft's no verdict "
            "(`accept`, `drop`, `continue`, `return`, `goto`, `jump`, `vmap`): it would be on every container's "
            "packets; code 7"
        ),
        schema={"type": "array", "items": {"type": "string"}},
    ),
    Key(
        ("markMasqBit",),
        "0 to 31",
        "13",
        "iptables only: the bit that marks packets to masquerade",
        schema={"type": "integer", "minimum": 0, "maximum": 31},
    ),
    Key(
        ("externalSetMarkChain",),
        "text",
        "none",
        "iptables only: the chain that sets the mark; not together with `markMasqBit`",
        schema={"type": "string"},
    ),
    Key(
        ("dataDir",),
        "absolute path",
        "`/var/lib/cni/cnimeta`",
        "where the records are kept, in `portmap/` below it",
        schema={"type": "string", "pattern": "^/"},
    ),
    Key(
        ("runtimeConfig.portMappings[].hostPort",),
        "1 to 65535",
        "required",
        "the port on the host",
        schema={"type": "integer", "minimum": 1, "maximum": 65535},
    ),
    Key(
        ("runtimeConfig.portMappings[].containerPort",),
        "1 to 65535",
        "required",
        "the port in the container",
        schema={"type": "integer", "minimum": 1, "maximum": 65535},
    ),
    Key(
        ("runtimeConfig.portMappings[].protocol",),
        "text",
        "`tcp`",
        "`tcp`, `udp` or `sctp`, in any case",
        schema={"type": "string", "pattern": "^([tT][cC][pP]|[uU][dD][pP]|[sS][cC][tT][pP])$"},
    ),
    Key(
        ("runtimeConfig.portMappings[].hostIP",),
        "address",
        "every address",
        (
            "only this address of the host; none of fe80::/10, which means nothing without an interface. `0.0.0.0` "
            "and `::` mean every address of their family; a mapping for one family is left out for the other"
        ),
        schema={"type": "string"},
    ),
    Key(
        ("runtimeConfig.portMappings[].endPort",),
        "1 to 65535",
        "`hostPort`",
        "the last host port of a range; the container's ports follow from `containerPort` on",
        schema={"type": "integer", "minimum": 1, "maximum": 65535},
    ),
    Key(
        ("runtimeConfig.portMappings[].count",),
        "1 to 65535",
        "1",
        "the length of the range, in place of `endPort`",
        schema={"type": "integer", "minimum": 1, "maximum": 65535},
    ),
)
