"""The hostport_alloc plugin. See docs/hostport_alloc.md."""
