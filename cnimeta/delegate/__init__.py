"""Calling another plugin: found in CNI_PATH, run as a process or in this one, answered with typed results."""

from cnimeta.delegate.call import Delegates as Delegates
