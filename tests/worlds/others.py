"""What other programs have in the ruleset, how they come and go, and how rules are saved, restored and flushed."""

from __future__ import annotations

import json
import subprocess

from look import SYSTEM, legacy_families, managed, run, saved, tables

_DOCKER = {
    "nat": """
:DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 5000 -j DNAT --to-destination 172.17.0.2:5000
""",
    "filter": """
:DOCKER
:DOCKER-USER
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -j DOCKER
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 5000 -j ACCEPT
-A DOCKER-USER -j RETURN
""",
}
_KUBE = {
    "nat": """
:KUBE-SERVICES
:KUBE-NODEPORTS
:KUBE-MARK-MASQ
:KUBE-POSTROUTING
:KUBE-SEP-AAAA
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web" -m tcp --dport 30080 -j KUBE-SEP-AAAA
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SEP-AAAA -p tcp -m tcp -j DNAT --to-destination 10.244.0.9:80
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
""",
}
_UFW = {
    "filter": """
:ufw-before-input
:ufw-user-input
-A INPUT -j ufw-before-input
-A INPUT -j ufw-user-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
""",
}
_CONNMARK = {
    "mangle": """
-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A POSTROUTING -m mark ! --mark 0x0 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
""",
}
_IPTABLES = {"docker": _DOCKER, "kube-iptables": _KUBE, "ufw": _UFW, "connmark": _CONNMARK}

_FIREWALLD = """
table inet firewalld {
	chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; policy accept; jump policy_allow; }
	chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; policy accept; oifname "up0" return; }
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
	}
	chain policy_allow { meta nfproto ipv6 fib saddr . mark . iif oif missing drop; }
}
"""
_KUBE_NFT = """
table ip kube-proxy {
	comment "rules for kube-proxy"
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map service-nodeports { type inet_proto . inet_service : verdict; elements = { tcp . 30080 : goto service-web } }
	set nodeport-ips { type ipv4_addr; elements = { 192.0.2.1 } }
	chain service-web { numgen random mod 1 vmap { 0 : goto endpoint-web }; }
	chain endpoint-web { ip saddr 10.244.0.9 jump mark-for-masquerade; meta l4proto tcp dnat to 10.244.0.9:80; }
	chain mark-for-masquerade { meta mark set meta mark | 0x00004000; }
	chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }
	chain nat-output { type nat hook output priority -100; policy accept; jump services; }
	chain masquerading {
		meta mark & 0x00004000 == 0x00000000 return
		meta mark set meta mark ^ 0x00004000
		masquerade fully-random
	}
	chain nat-postrouting { type nat hook postrouting priority srcnat; policy accept; jump masquerading; }
	chain services {
		ip daddr . meta l4proto . th dport vmap @service-ips
		ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}
}
"""
_WHOLE_MARKS = """
table inet strict {
	chain forward { type filter hook forward priority filter; policy accept; iifname "br0" meta mark != 0x0 drop; }
}
"""
_NFTABLES = {
    "firewalld": (_FIREWALLD, "inet firewalld"),
    "kube-nft": (_KUBE_NFT, "ip kube-proxy"),
    "whole-marks": (_WHOLE_MARKS, "inet strict"),
}

FLOW = "flow"
"""Not rules: UDP flows of a client beyond the node to another host, on ports that containers like to have."""
REFERENCE = "reference"
"""A container of the Go portmap, as on a node under migration; it has 8080/tcp."""
WHO = (*_IPTABLES, *_NFTABLES, FLOW, REFERENCE)


_CONF = json.dumps(
    {
        "cniVersion": "1.0.0",
        "name": "refnet",
        "type": "portmap",
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.2/24"}]},
    }
)


class Others:
    """The other programs of one node; `variant` is the iptables they use, first in `path`."""

    def __init__(self, variant: str, path: str) -> None:
        self.variant = variant
        self.path = path
        self.there: set[str] = set()

    def come(self, who: str) -> None:
        """Put the rules in; those that are there are written again."""
        self.go(who)
        self.there.add(who)
        if who == FLOW:
            for port in (8080, 80, 8081, 53):
                _flow("-I", port, "--timeout", "300")
        elif who == REFERENCE:
            if not self._reference("ADD"):  # it may have gone half the way: /proc/sys is read-only, say
                self.go(who)
        elif who in _NFTABLES:
            run("nft", "-f", "-", stdin=_NFTABLES[who][0])
        else:
            self._restore(who, going=False)

    def go(self, who: str) -> None:
        """Take them out."""
        if who not in self.there:
            return
        self.there.remove(who)
        if who == FLOW:
            run("conntrack", "-F")
        elif who == REFERENCE:
            self._reference("DEL")
        elif who in _NFTABLES:
            run("nft", "delete", "table", *_NFTABLES[who][1].split())
        else:
            self._restore(who, going=True)

    def _restore(self, who: str, *, going: bool) -> None:
        text = ""
        for table, body in _IPTABLES[who].items():
            rules = [line for line in body.split("\n") if line.startswith("-A")]
            chains = [line[1:] for line in body.split("\n") if line.startswith(":")]
            if going:
                lines = [f"-D {rule[3:]}" for rule in rules]
                lines += [f"-X {chain}" for chain in chains]
            else:
                lines = [*(f":{chain} - [0:0]" for chain in chains), *rules]
            text += "\n".join((f"*{table}", *lines, "COMMIT", ""))
        run(f"iptables-{self.variant}-restore", "--noflush", "-w", stdin=text)

    def _reference(self, verb: str) -> bool:
        """Whether its plugin did it."""
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "elsewhere",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni",
        }
        environ |= {"CNI_NETNS": "/run/netns/elsewhere", "PATH": f"{self.path}:{SYSTEM}"}
        done = subprocess.run(
            ["/usr/lib/cni/portmap"], input=_CONF, env=environ, capture_output=True, text=True, check=False
        )
        return done.returncode == 0

    def flush(self) -> None:
        """Every rule of the node goes."""
        run("nft", "flush", "ruleset")
        for family in legacy_families():
            command = "iptables-legacy" if family == 4 else "ip6tables-legacy"
            for table in ("nat", "filter", "mangle"):
                run(command, "-w", "-t", table, "-F")
                run(command, "-w", "-t", table, "-X")
        self.there.intersection_update({FLOW})


def _flow(action: str, port: int, *more: str) -> None:
    away = ("-s", "192.0.2.9", "-d", "198.51.100.53", "-r", "198.51.100.53", "-q", "192.0.2.1")
    ports = ("--sport", "4000", "--dport", str(port), "--reply-port-src", str(port), "--reply-port-dst", "4000")
    run("conntrack", action, "-p", "udp", *away, *ports, *more)


def save_and_restore() -> None:
    """What `netfilter-persistent` and `nftables.service` do at a restart: save, flush, restore."""
    listed = tables()
    script = "".join(f"delete table {name}\n{text}" for name, text in listed.items() if not managed(name))
    kept = [("nft", f, saved("nft", f)) for f, word in ((4, "ip "), (6, "ip6 ")) if _managed(listed, word)]
    kept += [("legacy", family, saved("legacy", family)) for family in legacy_families()]
    run("nft", "-f", "-", stdin=script)
    for variant, family, text in kept:
        run(f"{'iptables' if family == 4 else 'ip6tables'}-{variant}-restore", "-w", stdin=text)


def _managed(listed: dict[str, str], word: str) -> bool:
    return any(managed(name) and name.startswith(word) for name in listed)


def flush_part(which: str) -> None:
    """Empty one of the plugins' own chains and maps: the n-th (counted round), or the one of that name; or none."""
    found = []
    for name, text in sorted(tables().items()):
        if name.partition(" ")[2].startswith("cnimeta"):
            for line in text.splitlines():
                kind, _, rest = line.strip().partition(" ")
                if kind in ("chain", "map"):
                    found.append(("nft", "flush", kind, *name.split(), rest.removesuffix(" {").strip('"')))
    variants = [("nft", f) for f in (4, 6) if _managed(tables(), "ip " if f == 4 else "ip6 ")]
    for variant, family in [*variants, *(("legacy", family) for family in legacy_families())]:
        command = f"{'iptables' if family == 4 else 'ip6tables'}-{variant}"
        table = ""
        for line in saved(variant, family).splitlines():
            table = line[1:] if line.startswith("*") else table
            if line.startswith(":CNI"):
                found.append((command, "-w", "-t", table, "-F", line[1:].split()[0]))
    if which.isdigit():
        found = [found[int(which) % len(found)]] if found else []
    for command in found:
        if which.isdigit() or which == command[-1]:
            run(*command)
