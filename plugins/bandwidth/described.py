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
    ),
    Key(
        (
            "ingressBurst",
            "egressBurst",
        ),
        "bits",
        "0",
        "required with its rate; less than 4 GB",
    ),
    Key(
        ("latency",),
        "ms",
        "25",
        "how long a packet may wait, 1 to 10000; in the configuration only",
    ),
    Key(
        ("shapedSubnets",),
        "CIDRs",
        "none",
        "limit only what is exchanged with these subnets",
    ),
    Key(
        ("unshapedSubnets",),
        "CIDRs",
        "none",
        "limit all but what is exchanged with these; not together with `shapedSubnets`",
    ),
    Key(
        ("shapeInside",),
        "boolean",
        "false",
        "shape an interface that has no end on the host in the container; in the configuration only",
    ),
)
