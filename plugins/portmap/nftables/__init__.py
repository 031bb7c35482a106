"""Port mappings in nftables."""
