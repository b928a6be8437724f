"""The documentation site: `python docs/check.py` builds it into docs/_build/html.

The pages of docs/ are read on GitHub, too.  So they are plain Markdown, and what the site needs
beyond that is done here and in _site/: pages.py takes in the Markdown files outside docs/ and
rewrites links to them, docstrings.py turns the plain text of docstrings into reStructuredText.
"""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_site")]

import gpucnn  # noqa: E402

project = "gpucnn"
release = version = gpucnn.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "pages", "docstrings"]
exclude_patterns = ["_build", "_site", "_static"]
nitpicky = True
# Types in signatures: NumPy's and private ones have no entry to link to.
nitpick_ignore_regex = [(r"py:.*", r".*")]

# Where the sources can be read online, such as https://example.org/gpucnn/blob/main.  Links to
# files outside docs/ lead there; without it, the site offers the files themselves.
source_url = os.environ.get("GPUCNN_SOURCE_URL", "").rstrip("/")

html_theme = "furo"
html_title = "gpucnn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
highlight_language = "none"  # of blocks that name none: output and commands
pygments_style = "friendly"
pygments_dark_style = "github-dark"

myst_heading_anchors = 3  # GitHub's anchors: training.md#precision
myst_enable_extensions = ["colon_fence"]
copybutton_prompt_text = r"\$ |\(gdb\) "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

nb_execution_mode = "off" if os.environ.get("GPUCNN_DOCS_NOTEBOOKS") == "off" else "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds a cell
nb_merge_streams = True
