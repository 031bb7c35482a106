"""The bandwidth plugin. See docs/bandwidth.md."""
