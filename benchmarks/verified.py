"""Publish tables that were reproduced, and gather what was verified of the recipes for `tagreel recipes`.

    tagreel reproduce willow-1 --data ... --out runs/planted
    python benchmarks/verified.py [runs/planted ...]

A folder that `tagreel reproduce` filled is named for its data; its tables become the files
docs/results/reproduce-TABLE-DATA, with pictures in docs/images. Then tagreel/recipes/verified.json is written
anew: which recipes took a training step at their published size, from published_sizes.json, and which were
trained small on which data. Where the number of parameters comes from, and which parts have a naive reference
in their tests, is written there by hand and kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

from published_sizes import model_of

from tagreel.claims import TABLES
from tagreel.files import read_json, write_json, write_text
from tagreel.recipe import names
from tagreel.verdicts import draw, markdown

DOCS = Path("docs")
VERIFIED = Path("tagreel/recipes/verified.json")


def publish(folder: Path) -> None:
    """Write what came of the tables in a folder, those that are done, to the docs."""
    for table in TABLES:
        path = folder / f"{table}.json"
        result = read_json(path) if path.exists() else {}
        if "claims" not in result:
            continue
        name = f"reproduce-{table}-{folder.name}"
        write_json(DOCS / "results" / f"{name}.json", result)
        write_text(DOCS / "results" / f"{name}.md", markdown(result, picture=f"../images/{name}.png"))
        draw(result, DOCS / "images" / f"{name}.png")
        print(f"published {name}")


def gather() -> None:
    """Write what the results say was trained."""
    published = [name for name, recipe in names().items() if recipe.about.paper]
    sizes = read_json(DOCS / "results" / "published_sizes.json")
    stepped = {model_of(name) for name in sizes if name in names()}
    small: dict[str, list[str]] = {}
    for path in sorted(DOCS.glob("results/reproduce-*.json")):
        result = read_json(path)
        table, data = TABLES[result["table"]], path.stem.removeprefix(f"reproduce-{result['table']}-")
        trained = [name for row in result["rows"] for name in table.recipes(row) if name in published]
        small[data] = sorted({*small.get(data, ()), *trained})
    noted = read_json(VERIFIED)
    noted["step"] = [name for name in published if model_of(name) in stepped]
    noted["small"] = small
    write_json(VERIFIED, noted)
    print("gathered " + ", ".join(f"{len(value)} {key}" for key, value in noted.items()))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        publish(Path(argument))
    gather()
