"""The host's iptables, nat table: changes as values, and an adapter for each variant."""
