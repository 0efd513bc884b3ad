"""How Sphinx builds the site; `make docs` treats a warning as an error."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _generate

project = "Tagreel"
html_title = "Tagreel"
extensions = ["myst_parser"]
nitpicky = True
# What starts with _ belongs to the build.
exclude_patterns = ["_*"]

myst_enable_extensions = ["deflist"]
# Depth of the headings that a link can go to, named as GitHub names them.
myst_heading_anchors = 4

# Quotes and dashes are often those of a program.
smartquotes = False
# Indented blocks are mostly commands, and coloured as Python they would be wrong.
highlight_language = "text"
# The theme's own choice in the dark underlines modules, and hides every _ in their names.
pygments_dark_style = "monokai"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tagreel.css"]
html_copy_source = False
html_use_index = False
html_show_copyright = False

# Before every build, so that these pages are never older than the code.
_generate.write(Path(__file__).parent / "reference")
