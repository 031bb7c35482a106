"""The keys of bandwidth for `cnimeta explain`; the tables of docs/bandwidth.md say the same. Pure."""

from __future__ import annotations

from cnimeta.plugin.described import Key

KEYS = (
    Key(
        (
            "ingressRate",
            "egressRate",
        ),
        "bit/s",
        "0: no limit",
        "rate towards and from the container; 8 to 10^16",
        schema={"type": "integer", "minimum": 0},
    ),
    Key(
        (
            "ingressBurst",
            "egressBurst",
        ),
        "bits",
        "0",
        "required with its rate; less than 4 GB",
        schema={"type": "integer", "minimum": 0},
    ),
    Key(
        ("latency",),
        "ms",
        "25",
        "how long a packet may wait, 1 to 10000; in the configuration only",
        schema={"type": "integer", "minimum": 1, "maximum": 10000},
    ),
    Key(
        ("shapedSubnets",),
        "CIDRs",
        "none",
        "limit only what is exchanged with these subnets",
        schema={"type": "array", "items": {"type": "string"}},
    ),
    Key(
        ("unshapedSubnets",),
        "CIDRs",
        "none",
        "limit all but what is exchanged with these; not together with `shapedSubnets`",
        schema={"type": "array", "items": {"type": "string"}},
    ),
    Key(
        ("shapeInside",),
        "boolean",
        "false",
        "shape an interface that has no end on the host in the container; in the configuration only",
        schema={"type": "boolean"},
    ),
)
