"""What an operator does to a node: looking at it, saving what is known of it, owning its network configuration."""
