"""What a plugin sets up in a namespace: interfaces, addresses, routes, settings. Changes as values, and the adapter."""
