"""Metrics and traces of this node: what invocations report is added up, what is kept is read, and both are served."""
