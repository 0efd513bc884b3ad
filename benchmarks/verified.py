"""What was verified of the published recipes, gathered from docs/results and written for `tagreel recipes`.

    python benchmarks/verified.py

From published_sizes.json comes which recipes took a training step at their published size, and from the files
reproduce-TABLE-DATA.json which were trained small on which data. Where the number of parameters comes from,
and which parts have a naive reference in their tests, is written by hand in tagreel/recipes/verified.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from published_sizes import model_of

from tagreel.claims import TABLES
from tagreel.files import read_json, write_json
from tagreel.recipe import names

RESULTS = Path("docs/results")
VERIFIED = Path("tagreel/recipes/verified.json")


def main() -> None:
    """Write it anew."""
    published = [name for name, recipe in names().items() if recipe.about.paper]
    stepped = {model_of(name) for name in read_json(RESULTS / "published_sizes.json") if name in names()}
    small: dict[str, list[str]] = {}
    for path in sorted(RESULTS.glob("reproduce-*.json")):
        result = read_json(path)
        table, data = TABLES[result["table"]], path.stem.removeprefix(f"reproduce-{result['table']}-")
        trained = [name for row in result["rows"] for name in table.recipes(row) if name in published]
        small[data] = sorted({*small.get(data, ()), *trained})
    noted = read_json(VERIFIED)
    noted["step"] = [name for name in published if model_of(name) in stepped]
    noted["small"] = small
    write_json(VERIFIED, noted)
    print(json.dumps({key: len(value) for key, value in noted.items()}))


if __name__ == "__main__":
    main()
