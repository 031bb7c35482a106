"""The portmap plugin. See docs/portmap.md."""
