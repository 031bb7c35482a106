"""The keys of hostport_alloc for `cnimeta explain`; the tables of docs/hostport_alloc.md say the same. Pure."""

from __future__ import annotations

from cnimeta.plugin.described import Key

KEYS = (
    Key(
        ("ranges",),
        'object: name → `"FIRST-LAST"`, more parts after commas, or an object',
        '`{"default": "20000-24999"}`',
        "where host ports are taken from; ranges may not overlap each other",
        schema={
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "anyOf": [
                    {"type": "string", "pattern": "^ *[0-9]+( *- *[0-9]+)?( *, *[0-9]+( *- *[0-9]+)?)* *$"},
                    {"type": "object", "required": ["ports"]},
                ]
            },
        },
    ),
    Key(
        ("ranges.NAME.ports",),
        '`"FIRST-LAST"`, more parts after commas',
        "needed",
        "the ports of a range that is an object",
        schema={"type": "string", "pattern": "^ *[0-9]+( *- *[0-9]+)?( *, *[0-9]+( *- *[0-9]+)?)* *$"},
    ),
    Key(
        ("ranges.NAME.namespaces",),
        'array of namespaces, or how they begin: `"games-*"`',
        "everybody",
        (
            "only Pods of these namespaces get ports of this range, whether a Pod, `expose` or `defaultRange` names "
            "it; for others that is error 7"
        ),
        schema={"type": "array", "minItems": 1, "items": {"type": "string"}},
    ),
    Key(
        ("ranges.NAME.by",),
        "`random`, `ordinal`",
        "`random`",
        (
            "`ordinal`: Pod `db-3` of a StatefulSet, asking for n ports of this range, has those from the 3·n-th on, "
            "counted from 0"
        ),
        schema={"enum": ["random", "ordinal"]},
    ),
    Key(
        ("ranges.NAME.otherwise",),
        "`refuse`, `random`",
        "`refuse`",
        (
            "with `by: ordinal`, what a Pod gets whose port is taken (`refuse`: error 11), outside the range, or that "
            "has no ordinal (`refuse`: error 7)"
        ),
        schema={"enum": ["refuse", "random"]},
    ),
    Key(
        ("defaultRange",),
        "name of a range, or array of rules, of which the first that is met counts",
        "`default`",
        "the range of exposures that name none",
        schema={
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["range"],
                        "properties": {
                            "range": {"type": "string"},
                            "namespaces": {"type": "array", "items": {"type": "string"}},
                            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                        },
                    },
                },
            ]
        },
    ),
    Key(
        ("defaultRange.range",),
        "name of a range",
        "needed",
        "the range, where the rest of the rule is met",
    ),
    Key(
        ("defaultRange.namespaces",),
        "as `ranges.NAME.namespaces`",
        "every container",
        "met by Pods of these namespaces",
    ),
    Key(
        ("defaultRange.labels",),
        "object: label → value",
        "every container",
        "met by Pods that have all of these labels; needs `kubernetes.readPod`, and each ADD reads the Pod then",
    ),
    Key(
        ("rangesFile",),
        "absolute path",
        "none",
        (
            'a file of this node, a JSON object such as `{"games": "7100-7199"}`: the ports that ranges of the '
            "configuration have here. It must be root's alone; while it is not there, a container that wants ports "
            "gets error 11"
        ),
        schema={"type": "string", "pattern": "^/"},
    ),
    Key(
        ("quotas",),
        "object",
        "none",
        (
            "how many host ports of ranges may be held at once on this node. One number for two protocols counts as "
            "two. Error 11 while there is no room, 7 when there never is"
        ),
        schema={"type": "object"},
    ),
    Key(
        ("quotas.pod",),
        "number from 1",
        "none",
        "for one Pod, on all of its networks",
        schema={"type": "integer", "minimum": 1},
    ),
    Key(
        ("quotas.namespace",),
        "number from 0",
        "none",
        "for all Pods of a namespace together",
        schema={"type": "integer", "minimum": 0},
    ),
    Key(
        ("quotas.namespaces",),
        "object: namespace, or how it begins → number from 0",
        "none",
        "in place of `quotas.namespace`; the first that matches",
        schema={"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
    ),
    Key(
        ("reservePorts",),
        "boolean",
        "false",
        (
            "keep the ports of all ranges in `net.ipv4.ip_local_reserved_ports`, beside what others have there, so "
            "that the kernel gives none of them to a process by itself"
        ),
        schema={"type": "boolean"},
    ),
    Key(
        ("expose",),
        "array of exposures",
        "none",
        "exposed for every container",
        schema={"type": "array", "items": {"type": "string"}},
    ),
    Key(
        ("delegates",),
        "array of plugin configurations",
        "none",
        (
            "wrapper mode: run in order as a chain, each with the list's name and version, `prevResult`, and of "
            "`runtimeConfig` what its own `capabilities` name"
        ),
        schema={"type": "array", "items": {"type": "object", "required": ["type"]}},
    ),
    Key(
        ("delegate",),
        "one plugin configuration, or a list with `plugins`",
        "none",
        (
            "the same for one plugin or a whole conflist, which keeps its own `name`, `cniVersion`, `disableCheck` "
            "and `disableGC`"
        ),
        schema={"type": "object"},
    ),
    Key(
        ("portmap",),
        "plugin configuration",
        '`{"type": "portmap"}`',
        (
            "what maps the ports; all of its keys are passed on. Not used when a delegate is a portmap or has the "
            "capability `portMappings`: that one gets every mapping. A portmap is given `managedBy: hostport_alloc`, "
            "so that its own records tell these mappings from others"
        ),
        schema={"type": "object"},
    ),
    Key(
        ("hostIP",),
        '`"auto"`, an address or an array',
        '`"auto"`',
        (
            "the addresses advertised in the annotation, for nodes behind NAT or with several. `auto`: the source "
            "address of the default route, per family the container has. Mappings listen on every address of the node"
        ),
        schema={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    ),
    Key(
        ("external",),
        "object",
        "none",
        "the address under which ports are reached through a NAT: `externalIP` and `externalPort` in the annotation",
        schema={"type": "object"},
    ),
    Key(
        ("external.address",),
        "`node`, an address or an array",
        "the entry's `hostIP`",
        "`node`: the Node's addresses of type ExternalIP; of the first of each family, the one of the entry's is taken",
        schema={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    ),
    Key(
        ("external.nodeAnnotation",),
        "annotation of the Node: addresses, with commas between",
        "none",
        "where the Node has it, it goes before its ExternalIP",
        schema={"type": "string"},
    ),
    Key(
        ("external.nodeName",),
        "name of the Node",
        "the host's name",
        "the Node that is read, for kubelets with `--hostname-override`",
        schema={"type": "string"},
    ),
    Key(
        ("external.portOffset",),
        "number, -65535 to 65535",
        "0",
        "is added to a host port",
        schema={"type": "integer", "minimum": -65535, "maximum": 65535},
    ),
    Key(
        ("external.ports",),
        'object: `"FIRST-LAST"` → first port outside',
        "none",
        "in place of `portOffset`, where parts are mapped differently; a port in none of them has no address outside",
        schema={"type": "object", "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 65535}},
    ),
    Key(
        ("notify",),
        "object",
        "none",
        "who is told of each mapping, when it is there and when it is gone: a load balancer, a DNS server",
        schema={"type": "object"},
    ),
    Key(
        ("notify.program",),
        "absolute path",
        "this or `socket`",
        "a program that gets an event on its stdin, as root, and has taken it when it ends with status 0",
        schema={"type": "string", "pattern": "^/"},
    ),
    Key(
        ("notify.socket",),
        "absolute path",
        "this or `program`",
        "a unix socket whose server gets an event in a line, and answers `ok` in a line when it has taken it",
        schema={"type": "string", "pattern": "^/"},
    ),
    Key(
        ("notify.policy",),
        "`deferred`, `required`",
        "`deferred`",
        "`required`: ADD waits until its event is taken, and fails with code 106 when it is not",
        schema={"enum": ["deferred", "required"]},
    ),
    Key(
        ("notify.timeout",),
        "seconds, 0.1 to 86400",
        "5",
        "for one event; with `required`, for all that ADD waits",
        schema={"type": "number", "minimum": 0.1, "maximum": 86400},
    ),
    Key(
        ("kubernetes",),
        "object",
        "none",
        "annotate Pods; without it the local record is all there is",
        schema={"type": "object"},
    ),
    Key(
        ("kubernetes.kubeconfig",),
        "absolute path",
        "none",
        (
            "credentials. Without it: in-cluster ones, or else the node's own (`/etc/kubernetes/kubelet.conf`, "
            "`/var/lib/kubelet/kubeconfig`, k3s, RKE2, MicroK8s)"
        ),
        schema={"type": "string", "pattern": "^/"},
    ),
    Key(
        ("kubernetes.policy",),
        "`deferred`, `required`",
        "`deferred`",
        "what a failed annotation means for ADD",
        schema={"enum": ["deferred", "required"]},
    ),
    Key(
        ("kubernetes.timeout",),
        "seconds, 0.1 to 86400",
        "5",
        (
            "for reading the Pod, and again for annotating it: credentials, name resolution, all attempts and answers "
            "together"
        ),
        schema={"type": "number", "minimum": 0.1, "maximum": 86400},
    ),
    Key(
        ("kubernetes.readPod",),
        "boolean",
        "false",
        "read the Pod's annotations when the runtime passes none; needs `pods: get`",
        schema={"type": "boolean"},
    ),
    Key(
        ("quarantineSeconds",),
        "seconds, 0 to 86400",
        "30",
        "how long a released port is not given out again, unless nothing else is left",
        schema={"type": "number", "minimum": 0, "maximum": 86400},
    ),
    Key(
        ("sticky",),
        "boolean",
        "true",
        "a Pod of the same namespace and name gets the ports it had, when they are free",
        schema={"type": "boolean"},
    ),
    Key(
        ("stickySeconds",),
        "seconds",
        "3600",
        "how long that is remembered after DEL",
        schema={"type": "number", "minimum": 0},
    ),
    Key(
        ("nodePortRange",),
        '`"FIRST-LAST"`',
        '`"30000-32767"`',
        "the cluster's NodePorts; no bind test can see those in use, so ranges may not overlap them",
        schema={"type": "string", "pattern": "^ *[0-9]+( *- *[0-9]+)?( *, *[0-9]+( *- *[0-9]+)?)* *$"},
    ),
    Key(
        ("forceOverlap",),
        "boolean",
        "false",
        "allow ranges that overlap the NodePorts or the ephemeral range",
        schema={"type": "boolean"},
    ),
    Key(
        ("maxPortsPerPod",),
        "number, 1 to 4096",
        "64",
        "the annotation belongs to users: one Pod cannot take a whole range",
        schema={"type": "integer", "minimum": 1, "maximum": 4096},
    ),
    Key(
        ("dataDir",),
        "absolute path",
        "`/var/lib/cni/cnimeta`",
        (
            "the database of records and bitmaps; a folder of root's that nobody else may write to. Host ports belong "
            "to the node: every network must name the same folder"
        ),
        schema={"type": "string", "pattern": "^/"},
    ),
    Key(
        ("lockTimeout",),
        "seconds",
        "10",
        "how long to wait for an attachment that another command works on, and for the database",
        schema={"type": "number", "minimum": 0},
    ),
    Key(
        ("cnimeta.io/expose",),
        "annotation of the Pod: exposures, with commas between",
        "none",
        "what to expose besides `expose`; goes before it for the same container port",
    ),
    Key(
        ("cnimeta.io/hostports",),
        "annotation of the Pod: JSON array",
        "none",
        (
            "written by ADD: an object per exposed port and host address, with `containerPort`, `protocol`, `hostIP`, "
            "`hostPort` and `range`"
        ),
    ),
    Key(
        ("cnimeta.io/hostports-container",),
        "annotation of the Pod: container ID",
        "none",
        "written by ADD: the sandbox that the ports belong to",
    ),
)
