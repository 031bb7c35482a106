"""`cnimeta doctor`: what the plugins need, looked for on this node.

Nothing is changed: what must be tried is tried in a network namespace of its own, and no kernel module is loaded.
"""
