"""A plugin's package to start from: what `cnimeta new` writes. The files lie under template/, with names to fill in."""
