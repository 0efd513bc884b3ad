"""`tagreel encoders`: what makes features of pictures and sound."""

from __future__ import annotations

import inspect
import sys

from tagreel.commands._shared import Json, finish, printer


def encoders(as_json: Json = False) -> None:
    """List what can make features of pictures and sound, for `tagreel extract` and `tagreel dataset make`.

    Example: tagreel encoders
    """
    from tagreel.encoding import encoders as all_encoders

    say = printer(as_json)
    found = []
    for kind, encoder in sorted(all_encoders().items()):
        about = (inspect.getdoc(sys.modules[encoder.__module__]) or "").split("\n\n")[0].replace("\n", " ")
        options = [name for name in inspect.signature(encoder).parameters if name != "what"]
        found.append({"kind": kind, "what": encoder.expects, "about": about, "options": options})
        say(f"{kind}{':WHAT' if encoder.expects else ''}")
        say(f"    {about}")
        if encoder.expects:
            say(f"    WHAT is {encoder.expects}")
        say(f"    options: {', '.join(options) or 'none'}")
    finish(as_json, {"encoders": found})
