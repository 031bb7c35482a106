"""The meta plugins built on cnimeta. Installed as `cnimeta_plugins`; no plugin imports another."""
