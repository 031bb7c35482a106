"""nftables: changes as values, and the adapters that apply them."""
