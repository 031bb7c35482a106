"""Port mappings in iptables, as upstream's portmap makes them."""
