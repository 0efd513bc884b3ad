"""The child process in which `tagreel.decoding` decodes one file: PyAV, nothing else of tagreel.

    python -P tagreel/_decoder/__main__.py REQUEST

REQUEST is the JSON that `decoding.decode` makes; what comes back is in `program`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType


def start() -> None:
    """Run the program from this folder, whatever else is installed under the name of tagreel."""
    package = ModuleType("tagreel")
    package.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["tagreel"] = package

    from tagreel._decoder.program import main

    main()


if __name__ == "__main__":
    start()
