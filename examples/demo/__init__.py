"""The demo behind `make demo`: a whole node in network namespaces, with real plugins and real traffic."""
