"""Sphinx's settings for this site: `make docs` builds it into build/docs."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from generators import filled  # noqa: E402

from pipeline.system import __version__  # noqa: E402

project = "Curvature Pipeline"
author = "the authors of Curvature Pipeline"
version = release = __version__
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["generators", "gallery/verdicts.md"]
myst_enable_extensions = ["colon_fence", "substitution"]
myst_heading_anchors = 4
myst_substitutions = {"version": __version__}
nitpicky = True
smartquotes = False  # quotes of messages stay as they are
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is


html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"index": [], "comparison": []}  # pages that are a section of their own
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # these are fetched, which browsers refuse for pages of a folder
html_last_updated_fmt = None
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "show_prev_next": True,
    "show_toc_level": 2,
    "footer_start": [],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "navigation_with_keys": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def _fill(app, name, source):
    source[0] = filled(source[0])


def setup(app):
    """Pages get what is generated when Sphinx reads them."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
