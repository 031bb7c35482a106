"""What plugins agree on about host ports, without importing each other. Pure."""
