"""How Sphinx builds the documentation.

pip install -r requirements.txt -r requirements-docs.txt
python -m sphinx -W --keep-going -b html docs docs/_build/html

The build needs no network. Parts that follow from the code are written by `generate.py`.
"""

import os
import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]
# For the kernels that run the pages: the package of this checkout, on a CPU.
os.environ["PYTHONPATH"] = os.pathsep.join(
  filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import docstrings  # noqa: E402
import generate  # noqa: E402

import sprout_jax  # noqa: E402

project = "sprout_jax"
author = "the authors of sprout_jax"
release = version = sprout_jax.__version__
extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.mathjax",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
  "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "_generated", "jupyter_execute"]

html_theme = "sphinx_book_theme"
html_title = "sprout_jax"
html_theme_options = {
  "navbar_persistent": [],  # the sidebar has a field for the search
  "show_toc_level": 2,
  "use_download_button": False,
}
html_static_path = ["_static"]
html_css_files = ["style.css"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Pages with code cells are run by every build, each in an empty folder.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 1800  # seconds of a cell, on a busy machine
nb_merge_streams = True

smartquotes = False  # "--config" and "x" stay as they are
# Names in single backticks become links where there is something of that name.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
suppress_warnings = ["mystnb.unknown_mime_type"]


def setup(app):
  app.connect("builder-inited", lambda app: generate.write(DOCS / "_generated"))
  docstrings.connect(app)
