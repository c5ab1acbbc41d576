"""Sphinx settings: Markdown pages, google docstrings, one page of API for each topic."""

import builtins
import urllib.error
import urllib.request

from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain

project = "moduli"
author = "The moduli authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

html_theme = "furo"  # light and dark, wide and narrow
html_title = "moduli"
pygments_dark_style = "monokai"  # furo's own underlines every name
html_static_path = ["_static"]
html_css_files = ["moduli.css"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True  # as written in the source
autodoc_default_options = {"members": True, "undoc-members": False}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def reachable(*inventories: tuple[str, str]) -> dict[str, tuple[str, None]]:
    """Returns those of other projects whose inventory can be had: one builds offline too."""
    found = {}
    for name, address in inventories:
        try:
            urllib.request.urlopen(f"{address}objects.inv", timeout=5).close()
        except (urllib.error.URLError, TimeoutError, OSError):
            continue
        found[name] = (address, None)
    return found


intersphinx_mapping = reachable(
    ("python", "https://docs.python.org/3/"),
    ("jax", "https://docs.jax.dev/en/latest/"),
    ("numpy", "https://numpy.org/doc/stable/"),
    ("optax", "https://optax.readthedocs.io/en/latest/"),
)


class Python(PythonDomain):
    """Python's domain, in which ``type`` is Python's, and ``Module`` that of ``moduli``.

    An annotation says neither where a name is from, and attributes and other modules have them too.
    """

    def find_obj(self, env, modname, classname, name, type, searchmode=0):
        if hasattr(builtins, name):
            return []
        found = super().find_obj(env, modname, classname, name, type, searchmode)
        return [match for match in found if match[0] == f"moduli.{name}"] or found


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_domain(Python, override=True)
