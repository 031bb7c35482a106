"""The runtime side of the SDK, what libcni and cnitool are in Go: configurations, chains, the results cache."""

from cnimeta.runtime.cache import Cache as Cache
from cnimeta.runtime.cache import Cached as Cached
from cnimeta.runtime.chain import Container as Container
from cnimeta.runtime.chain import Runtime as Runtime
from cnimeta.runtime.conf import NetworkList as NetworkList
from cnimeta.runtime.conf import find_network as find_network
from cnimeta.runtime.conf import load_file as load_file
from cnimeta.runtime.conf import load_folder as load_folder
from cnimeta.runtime.conf import network_of as network_of
