"""The `cnimeta` command."""
