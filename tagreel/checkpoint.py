"""A run's folder: checkpoints written whole or not at all, found again, and loaded without running code.

    RUN/
      recipe.json                       what is trained
      checkpoints/step-00001200/
        model.safetensors, model.json   the tagger: weights, recipe, label names, widths
        tags.json                       how its classes are shown, where that was changed (`tagreel.tags`)
        features/                       files that made the features which it reads, if there were any
        training.safetensors, .json     what a resumed run needs besides: optimizer, raw weights, position
      best.json                         which checkpoint was best on validation
      log.jsonl                         what the terminal showed

    ENSEMBLE/
      ensemble.json                     members and their weights, label names, how it came about
      members/NAME/                     a model: model.safetensors and model.json, or another ensemble
      members/NAME.parquet              or the predictions of one

Both are written under a name that nobody reads, flushed to disk and renamed; so a process may be killed at
any moment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagreel import recipe as recipes
from tagreel.ensemble import EnsembleTagger
from tagreel.errors import DataError, RecipeError, TagreelError
from tagreel.files import flush, read_json, read_tensors, write_bytes, write_json, write_tensors
from tagreel.model import Model
from tagreel.provenance import Provenance
from tagreel.recorded import Recorded
from tagreel.sharding import part_of
from tagreel.tagger import Tagger, build

_STEP = re.compile(r"step-(\d{8,})")
_KNOWS_CLASSES = re.compile(r"(^|\.)(head|output|late)\.")
_FORMAT = 1
_MADE_BY = "features"
_DESCRIPTIONS = ("model.json", "ensemble.json")
TAGS = "tags.json"


def save(
    run: Path,
    step: int,
    model: Tagger,
    weights: Mapping[str, Tensor],
    *,
    facts: Mapping[str, Any],
    training: Mapping[str, Tensor] | None = None,
    position: Mapping[str, Any] | None = None,
) -> Path:
    """Write checkpoint number `step`: the tagger with these weights and, if given, the state of its training.

    `facts` are kept with the model for whoever reads it (step, scores, data).
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    partial = _written(folder, model, weights, facts)
    if training is not None:
        write_tensors(partial / "training.safetensors", training)
        write_json(partial / "training.json", position)
    if folder.exists():
        _remove(folder)
    os.replace(partial, folder)
    flush(folder.parent)
    return folder


def save_model(out: Path, model: Tagger, *, facts: Mapping[str, Any]) -> None:
    """Write a tagger to the folder `out`, with `facts` as `save` does; raises `RecipeError` if it exists."""
    check_new(out)
    os.replace(_written(out, model, model.state_dict(), facts), out)
    flush(out.parent)


def _written(folder: Path, model: Tagger, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """The folder of a model under a name that nobody reads, yet to be renamed to `folder`."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    description = {
        "format": _FORMAT,
        "recipe": recipes.to_json(model.recipe),
        "features": model.features,
        "classes": model.classes,
        "label_names": model.label_names,
        "fired": model.fired,
        "provenance": model.provenance and model.provenance.streams,
        "facts": dict(facts),
    }
    write_json(partial / "model.json", description)
    write_tensors(partial / "model.safetensors", weights)
    for digest, content in (model.provenance.files if model.provenance else {}).items():
        write_bytes(partial / _MADE_BY / digest, content)
    return partial


def save_ensemble(
    out: Path, model: EnsembleTagger, sources: Mapping[str, Path], *, facts: Mapping[str, Any]
) -> None:
    """Write an ensemble to the new folder `out`, with a copy of each member's files from its source.

    Raises `RecipeError` when `out` exists.
    """
    check_new(out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, member in zip(model.member_names, model.members, strict=True):
        target = partial / "members" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(member, Recorded):
            member.write(target.with_name(f"{name}.parquet"))
            continue
        for path in model_files(sources[name]):
            copy = target / path.relative_to(sources[name])
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            flush(copy)
    columns = zip(model.member_names, model.weights.tolist(), strict=True)
    description = {
        "format": _FORMAT,
        "classes": model.classes,
        "label_names": model.label_names if model.has_label_names else None,
        "top_k": model.top_k,
        "members": [{"name": name, "weight": weight} for name, weight in columns],
        "facts": dict(facts),
    }
    write_json(partial / "ensemble.json", description)
    os.replace(partial, out)
    flush(out.parent)


def check_new(out: Path) -> None:
    """Raise `RecipeError` when there is something at `out` already, or nothing can be written there."""
    if out.exists():
        raise RecipeError(f"--out {out}: exists; expected the name of a new folder")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise RecipeError(f"--out {out}: nothing can be written to {above}; expected a folder of yours")


def ensemble_weights(folder: Path) -> dict[str, float]:
    """The members of a saved ensemble and their weights; raises `DataError` when there is none."""
    if not (folder / "ensemble.json").exists():
        raise DataError("is no ensemble; expected what `tagreel ensemble fit` wrote", path=str(folder))
    try:
        return _member_weights(_description(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"not an ensemble as tagreel writes it: {error!r}", path=str(folder / "ensemble.json")
        ) from error


def member_size(ensemble: Path, name: str) -> int:
    """The bytes of a member's files."""
    folder = ensemble / "members" / name
    files = model_files(folder) if folder.is_dir() else [folder.with_name(f"{name}.parquet")]
    return sum(path.stat().st_size for path in files)


def model_files(folder: Path) -> list[Path]:
    """The files that a model or an ensemble is made of; not its reports, nor the state of a training."""
    own = [folder / name for name in (*_DESCRIPTIONS, "model.safetensors", TAGS)]
    members = sorted((folder / "members").iterdir()) if (folder / "members").is_dir() else []
    parts = [path for path in members if path.is_dir() or path.suffix == ".parquet"]
    inner = [file for path in parts for file in (model_files(path) if path.is_dir() else [path])]
    made_by = sorted((folder / _MADE_BY).iterdir()) if (folder / _MADE_BY).is_dir() else []
    return [path for path in own if path.exists()] + made_by + inner


def note_best(run: Path, scores: Mapping[str, Any] | None) -> str | None:
    """Write which checkpoint was best, with its scores, to best.json; the checkpoint's name."""
    if scores is None:
        return None
    name = f"step-{scores['step']:08d}"
    write_json(run / "best.json", {**scores, "checkpoint": name})
    return name


def prune(run: Path, *, keep: int, best: str | None) -> None:
    """Remove all but the last `keep` checkpoints and the best one, and what killed runs left half-written."""
    for folder in checkpoints(run)[:-keep]:
        if folder.name != best:
            _remove(folder)
    for partial in (run / "checkpoints").glob("step-*.partial*"):
        shutil.rmtree(partial)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name[5:]))


def find(run: Path, which: str = "best") -> Path:
    """The folder of a run's checkpoint: "best" (the last if there was no validation), "last" or "step-N".

    A checkpoint's own folder is taken as it is, and so is an ensemble.
    """
    if any((run / name).exists() for name in _DESCRIPTIONS):
        if which not in ("best", "last") and _number(which) != _number(run.name):
            raise DataError(f"is one model; --checkpoint {which} needs the run's folder", path=str(run))
        return run
    found = checkpoints(run)
    if not found:
        raise DataError("holds no checkpoint; expected the folder that `tagreel train` wrote", path=str(run))
    if which == "best" and (run / "best.json").exists():
        noted = read_json(run / "best.json")
        which = str(noted.get("checkpoint") if isinstance(noted, dict) else None)
    elif which in ("best", "last"):
        return found[-1]
    for folder in found:
        if _number(folder.name) == _number(which):
            return folder
    raise DataError(f"no checkpoint {which!r}; it has: {', '.join(f.name for f in found)}", path=str(run))


def load(
    run: str | Path,
    *,
    checkpoint: str = "best",
    device: str | torch.device = "cpu",
    trust: tuple[str, ...] = (),
) -> Model:
    """The tagger of a run, or an ensemble, ready to predict.

    Nothing in the files is executed: weights are safetensors, and the recipe names classes of tagreel, or of
    the packages in `trust`. Raises `DataError` when the folder holds no complete model.
    """
    folder = find(Path(run), checkpoint)
    if not (folder / "ensemble.json").exists():
        return load_tagger(folder, device=device, trust=trust)
    description, where = _description(folder), str(folder / "ensemble.json")
    members: dict[str, Model] = {}
    try:
        classes, names = description["classes"], description["label_names"]
        weights = _member_weights(description)
        for name in weights:
            path = folder / "members" / name
            members[name] = (
                load(path, device=device, trust=trust)
                if path.is_dir()
                else Recorded(path.with_name(f"{path.name}.parquet"), classes=classes, label_names=names)
            )
        return EnsembleTagger(members, list(weights.values()), top_k=description["top_k"]).to(device).eval()
    except TagreelError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"not an ensemble as tagreel writes it: {error!r}", path=where) from error


def load_tagger(
    run: str | Path,
    *,
    checkpoint: str = "best",
    device: str | torch.device = "cpu",
    trust: tuple[str, ...] = (),
) -> Tagger:
    """The tagger of a run as `load` gives it; raises `DataError` when there is an ensemble."""
    folder = _find_tagger(Path(run), checkpoint)
    description, where = _description(folder), str(folder / "model.json")
    try:
        with torch.device("meta"):
            model = build(
                recipes.from_json(description["recipe"], where=where, trust=trust),
                features=description["features"],
                classes=description["classes"],
                label_names=description["label_names"],
            )
    except TagreelError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"not a model as tagreel writes it: {error!r}", path=where) from error
    weights = read_tensors(folder / "model.safetensors")
    model.fire(description.get("fired", True) is True)
    if streams := description.get("provenance"):
        files = sorted((folder / _MADE_BY).iterdir()) if (folder / _MADE_BY).is_dir() else []
        model.provenance = Provenance(streams, {path.name: path.read_bytes() for path in files})
    model.to_empty(device="cpu")
    load_weights(model, weights, path=str(folder / "model.safetensors"))
    return model.to(device).eval()


def facts(folder: Path) -> dict[str, Any]:
    """What was noted with a checkpoint: step, scores, data."""
    noted = _description(folder).get("facts")
    return noted if isinstance(noted, dict) else {}


def class_names(folder: Path) -> list[str]:
    """What a saved model calls its classes, by their numbers where nobody named them."""
    description = _description(folder)
    names = description.get("label_names")
    return names or [f"class {c}" for c in range(description.get("classes", 0))]


def storage_of(folder: Path) -> str:
    """The storage of a model's weights: "float32" unless `tagreel compress` wrote them."""
    return str(_description(folder).get("storage", "float32"))


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], *, path: str) -> None:
    """Fill the model; raises `DataError` that names what is missing, unknown or of another shape."""
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise DataError(f"no tensor {name!r}; the file belongs to another model", path=path)
        if weights[name].shape != tensor.shape:
            found, wanted = tuple(weights[name].shape), tuple(tensor.shape)
            raise DataError(f"tensor {name!r} is {found}, the recipe says {wanted}", path=path)
        if weights[name].is_floating_point() != tensor.is_floating_point():
            kinds = [str(each.dtype).removeprefix("torch.") for each in (weights[name], tensor)]
            raise DataError(f"tensor {name!r} is {kinds[0]}, the recipe says {kinds[1]}", path=path)
    if unknown := sorted(set(weights) - set(expected)):
        raise DataError(f"tensor {unknown[0]!r} is not in the recipe's model", path=path)
    model.load_state_dict({name: part_of(weights[name], tensor) for name, tensor in expected.items()})


def start_from(model: Tagger, run: Path) -> list[str]:
    """Take over from a run's best checkpoint every tensor of the same name and shape; their names.

    Of the parts that know the classes (head, output, late) only where both have the same names of classes.
    Raises `DataError` when nothing fits.
    """
    folder = _find_tagger(run)
    same_classes = _description(folder).get("label_names") == model.label_names
    found = read_tensors(folder / "model.safetensors")
    taken = {
        name: found[name]
        for name, tensor in model.state_dict().items()
        if name in found
        and found[name].shape == tensor.shape
        and (same_classes or not _KNOWS_CLASSES.search(name))
    }
    if not taken:
        raise DataError(
            "no tensor of it fits this recipe's model, so there is nothing to start from", path=str(run)
        )
    model.load_state_dict(taken, strict=False)
    return list(taken)


def label_names(run: Path) -> list[str] | None:
    """The names that a run's last checkpoint carries, None where there is no checkpoint yet."""
    found = checkpoints(run)
    names = _description(found[-1]).get("label_names") if found else None
    return [str(name) for name in names] if isinstance(names, list) else None


def check_same_recipe(run: Path, wanted: recipes.Recipe) -> None:
    """Raise `RecipeError` unless the run trains this recipe; only its length may differ."""

    def comparable(data: dict[str, Any]) -> dict[str, Any]:
        training = {k: v for k, v in data["training"].items() if k not in ("epochs", "steps")}
        return {**data, "training": training, "about": None}

    try:
        old = comparable(read_json(run / "recipe.json"))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError("not a recipe as tagreel writes it", path=str(run / "recipe.json")) from error
    new = comparable(recipes.to_json(wanted))
    for path, (before, after) in _differences(old, new, ""):
        raise RecipeError(
            f"{run}: was started with {path} = {json.dumps(before)}, now it is {json.dumps(after)}; "
            "resume with the same settings, or train into another folder"
        )


def _find_tagger(run: Path, which: str = "best") -> Path:
    folder = find(run, which)
    if (folder / "ensemble.json").exists():
        raise DataError("is an ensemble; expected one model, such as one of its members/", path=str(run))
    return folder


def _number(name: str) -> str:
    """The step in `step-00001200`, `step-1200` or `1200`."""
    return name.removeprefix("step-").lstrip("0")


def _description(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in _DESCRIPTIONS if (folder / name).exists()), folder / "model.json")
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError("not a model as tagreel writes it: no JSON object", path=str(path))
    if found.get("format") != _FORMAT:
        raise DataError(
            f"format {found.get('format')!r}; this tagreel reads {_FORMAT}, another version wrote it",
            path=str(path),
        )
    return found


def _member_weights(description: Mapping[str, Any]) -> dict[str, float]:
    """Of an ensemble's description the members and their weights; raises what `load` and others wait for."""
    weights = {member["name"]: member["weight"] for member in description["members"]}
    if len(weights) < len(description["members"]):
        raise ValueError("two members of one name")
    for name, weight in weights.items():
        if name in ("", "..") or Path(name).name != name or not isinstance(weight, int | float):
            raise ValueError(f"a member {name!r} of weight {weight!r}")
    return weights


def _differences(old: Any, new: Any, where: str) -> list[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            d for key in keys for d in _differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        ]
    return [] if old == new else [(where, (old, new))]


def _remove(folder: Path) -> None:
    """Renamed first: a half-removed folder must not look like a checkpoint."""
    doomed = folder.with_name(folder.name + ".partial-removal")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)
