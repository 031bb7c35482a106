"""The node's record of who holds which host port."""
