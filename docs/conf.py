"""Sphinx settings: Markdown pages, google docstrings, one page of API."""

project = "moduli"
author = "The moduli authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "undoc-members": False}
# pages link to files of the repository (the README), which are not pages here
suppress_warnings = ["myst.xref_missing", "ref.python"]
