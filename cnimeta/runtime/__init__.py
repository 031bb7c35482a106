"""The runtime side of the SDK: what libcni and cnitool are in Go."""
