"""cnimeta: the Python SDK for CNI plugins. See README.md; the spec is https://www.cni.dev/docs/spec/."""

__version__ = "0.1.0"
