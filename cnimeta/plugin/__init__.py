"""The plugin side of the SDK: subclass `Plugin`, call `main`. See docs/sdk.md."""

from cnimeta.plugin.base import Plugin as Plugin
from cnimeta.plugin.dispatch import Outcome as Outcome
from cnimeta.plugin.dispatch import main as main
from cnimeta.plugin.dispatch import run as run
from cnimeta.plugin.request import Attachment as Attachment
from cnimeta.plugin.request import Request as Request
