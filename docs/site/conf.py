"""Sphinx's settings for the site: `make docs` builds it into build/site from the Markdown that code hosts show too."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.parsers.rst import Directive

from cnimeta import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "cnimeta"
author = "the cnimeta authors"
copyright = "the cnimeta authors, Apache-2.0"  # noqa: A001 (Sphinx's name)
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "examples/**.md", "deploy/**.md"]
exclude_patterns = ["build", ".venv", "**/node_modules"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["attrs_block", "colon_fence", "html_image"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"cnimeta {release}"
html_extra_path = ["../reference/schema"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_js_files = ["mermaid.min.js", "pictures.js"]


class Mermaid(Directive):
    """A picture from text: code hosts draw it too."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """What the browser draws."""
        text = html.escape("\n".join(self.content))
        return [nodes.raw("", f'<pre class="mermaid">{text}</pre>', format="html")]


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.add_directive("mermaid", Mermaid)
