"""The keys of hostport_alloc for `cnimeta explain`; the tables of docs/hostport_alloc.md say the same. Pure."""

from __future__ import annotations

from cnimeta.plugin.described import Key

KEYS = (
    Key(
        ("ranges",),
        'object: name → `"FIRST-LAST"`, more parts after commas, or an object',
        '`{"default": "20000-24999"}`',
        "where host ports are taken from; ranges may not overlap each other",
    ),
    Key(
        ("ranges.NAME.ports",),
        '`"FIRST-LAST"`, more parts after commas',
        "needed",
        "the ports of a range that is an object",
    ),
    Key(
        ("ranges.NAME.namespaces",),
        'array of namespaces, or how they begin: `"games-*"`',
        "everybody",
        (
            "only Pods of these namespaces get ports of this range, whether a Pod, `expose` or `defaultRange` names "
            "it; for others that is error 7"
        ),
    ),
    Key(
        ("ranges.NAME.by",),
        "`random`, `ordinal`",
        "`random`",
        (
            "`ordinal`: Pod `db-3` of a StatefulSet, asking for n ports of this range, has those from the 3·n-th on, "
            "counted from 0"
        ),
    ),
    Key(
        ("ranges.NAME.otherwise",),
        "`refuse`, `random`",
        "`refuse`",
        (
            "with `by: ordinal`, what a Pod gets whose port is taken (`refuse`: error 11), outside the range, or that "
            "has no ordinal (`refuse`: error 7)"
        ),
    ),
    Key(
        ("defaultRange",),
        "name of a range, or array of rules, of which the first that is met counts",
        "`default`",
        "the range of exposures that name none",
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
    ),
    Key(
        ("quotas",),
        "object",
        "none",
        (
            "how many host ports of ranges may be held at once on this node. One number for two protocols counts as "
            "two. Error 11 while there is no room, 7 when there never is"
        ),
    ),
    Key(
        ("quotas.pod",),
        "number from 1",
        "none",
        "for one Pod, on all of its networks",
    ),
    Key(
        ("quotas.namespace",),
        "number from 0",
        "none",
        "for all Pods of a namespace together",
    ),
    Key(
        ("quotas.namespaces",),
        "object: namespace, or how it begins → number from 0",
        "none",
        "in place of `quotas.namespace`; the first that matches",
    ),
    Key(
        ("reservePorts",),
        "boolean",
        "false",
        (
            "keep the ports of all ranges in `net.ipv4.ip_local_reserved_ports`, beside what others have there, so "
            "that the kernel gives none of them to a process by itself"
        ),
    ),
    Key(
        ("expose",),
        "array of exposures",
        "none",
        "exposed for every container",
    ),
    Key(
        ("delegates",),
        "array of plugin configurations",
        "none",
        (
            "wrapper mode: run in order as a chain, each with the list's name and version, `prevResult`, and of "
            "`runtimeConfig` what its own `capabilities` name"
        ),
    ),
    Key(
        ("delegate",),
        "one plugin configuration, or a list with `plugins`",
        "none",
        (
            "the same for one plugin or a whole conflist, which keeps its own `name`, `cniVersion`, `disableCheck` "
            "and `disableGC`"
        ),
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
    ),
    Key(
        ("hostIP",),
        '`"auto"`, an address or an array',
        '`"auto"`',
        (
            "the addresses advertised in the annotation, for nodes behind NAT or with several. `auto`: the source "
            "address of the default route, per family the container has. Mappings listen on every address of the node"
        ),
    ),
    Key(
        ("external",),
        "object",
        "none",
        "the address under which ports are reached through a NAT: `externalIP` and `externalPort` in the annotation",
    ),
    Key(
        ("external.address",),
        "`node`, an address or an array",
        "the entry's `hostIP`",
        "`node`: the Node's addresses of type ExternalIP; of the first of each family, the one of the entry's is taken",
    ),
    Key(
        ("external.nodeAnnotation",),
        "annotation of the Node: addresses, with commas between",
        "none",
        "where the Node has it, it goes before its ExternalIP",
    ),
    Key(
        ("external.nodeName",),
        "name of the Node",
        "the host's name",
        "the Node that is read, for kubelets with `--hostname-override`",
    ),
    Key(
        ("external.portOffset",),
        "number, -65535 to 65535",
        "0",
        "is added to a host port",
    ),
    Key(
        ("external.ports",),
        'object: `"FIRST-LAST"` → first port outside',
        "none",
        "in place of `portOffset`, where parts are mapped differently; a port in none of them has no address outside",
    ),
    Key(
        ("kubernetes",),
        "object",
        "none",
        "annotate Pods; without it the local record is all there is",
    ),
    Key(
        ("kubernetes.kubeconfig",),
        "absolute path",
        "none",
        (
            "credentials. Without it: in-cluster ones, or else the node's own (`/etc/kubernetes/kubelet.conf`, "
            "`/var/lib/kubelet/kubeconfig`, k3s, RKE2, MicroK8s)"
        ),
    ),
    Key(
        ("kubernetes.policy",),
        "`deferred`, `required`",
        "`deferred`",
        "what a failed annotation means for ADD",
    ),
    Key(
        ("kubernetes.timeout",),
        "seconds, 0.1 to 86400",
        "5",
        (
            "for reading the Pod, and again for annotating it: credentials, name resolution, all attempts and answers "
            "together"
        ),
    ),
    Key(
        ("kubernetes.readPod",),
        "boolean",
        "false",
        "read the Pod's annotations when the runtime passes none; needs `pods: get`",
    ),
    Key(
        ("quarantineSeconds",),
        "seconds, 0 to 86400",
        "30",
        "how long a released port is not given out again, unless nothing else is left",
    ),
    Key(
        ("sticky",),
        "boolean",
        "true",
        "a Pod of the same namespace and name gets the ports it had, when they are free",
    ),
    Key(
        ("stickySeconds",),
        "seconds",
        "3600",
        "how long that is remembered after DEL",
    ),
    Key(
        ("nodePortRange",),
        '`"FIRST-LAST"`',
        '`"30000-32767"`',
        "the cluster's NodePorts; no bind test can see those in use, so ranges may not overlap them",
    ),
    Key(
        ("forceOverlap",),
        "boolean",
        "false",
        "allow ranges that overlap the NodePorts or the ephemeral range",
    ),
    Key(
        ("maxPortsPerPod",),
        "number, 1 to 4096",
        "64",
        "the annotation belongs to users: one Pod cannot take a whole range",
    ),
    Key(
        ("dataDir",),
        "absolute path",
        "`/var/lib/cni/cnimeta`",
        (
            "the database of records and bitmaps; a folder of root's that nobody else may write to. Host ports belong "
            "to the node: every network must name the same folder"
        ),
    ),
    Key(
        ("lockTimeout",),
        "seconds",
        "10",
        "how long to wait for an attachment that another command works on, and for the database",
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
