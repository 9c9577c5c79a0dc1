"""The documentation site, which `make docs` builds from these pages and the package's docstrings."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "deform-attn"
author = "The deform-attn developers"
copyright = author  # furo shows the line in any case
version = release = installed("deform-attn")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "option_tables", "setting_tables"]
exclude_patterns = ["_build", "extensions"]
smartquotes_action = "D"  # dashes only: quotes of settings and of messages are shown as they are written
highlight_language = "text"  # where a block names none

# Pages. Anchors of headings are those that GitHub makes, so that links lead to the same place here and there.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# Docstrings. Single backquotes hold code, as on the pages.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them; the list of arguments says shapes and ranges
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# The theme. Nothing in it loads from elsewhere: the fonts are the reader's own.
html_theme = "furo"
html_title = f"deform-attn {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
pygments_style = "tango"
pygments_dark_style = "monokai"
