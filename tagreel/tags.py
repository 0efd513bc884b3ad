"""Tags as a service shows them: a model's classes renamed, merged, left out, calibrated, with thresholds.

Nothing is trained. What was changed lies in one file, tags.json, in the model's folder:

    {"format": 1,
     "default": {"slope": 1.0, "bias": 0.0, "threshold": 0.5, "positives": null},
     "fitted": null,
     "tags": [{"name": "Cat", "classes": {"17": "Kitten", "40": "Tabby"}, "slope": 1.0, ...}, ...]}

Classes that no tag is made of are not shown. `default` is for a tag that was made after `tagreel calibrate`,
`fitted` says what that was given. A threshold of null: the tag is never shown.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagreel.checkpoint import TAGS, class_names
from tagreel.errors import DataError, RecipeError
from tagreel.files import read_json, write_json, written_whole
from tagreel.model import Model

_FORMAT = 1
_COLUMNS = ("class", "name", "tag")


@dataclass(frozen=True, slots=True)
class Fit:
    """How a tag's probability is read: p' = sigmoid(slope · logit(p) + bias), shown from `threshold` on.

    A threshold of infinity: never. `positives` says how many it was fitted on, None where it was not.
    """

    slope: float = 1.0
    bias: float = 0.0
    threshold: float = 0.5
    positives: int | None = None


@dataclass(frozen=True, slots=True)
class ShownTag:
    """A tag: its name, the classes that it is made of in ascending order, and how it is read."""

    name: str
    classes: tuple[int, ...]
    fit: Fit = Fit()


@dataclass(frozen=True)
class TagSet:
    """The tags that are shown of a model, in the order of their classes, which it calls `label_names`.

    A new tag is read as `default` says. `fitted` is what `tagreel calibrate` was given, None before.
    """

    tags: tuple[ShownTag, ...]
    label_names: tuple[str, ...]
    default: Fit = Fit()
    fitted: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, model: Model) -> TagSet:
        """All classes of a model as they are."""
        return cls._as_trained(model.label_names)

    @classmethod
    def in_folder(cls, folder: Path) -> TagSet:
        """The tags of a saved model: those of its tags.json, else all classes as they are."""
        return cls.read(folder) or cls._as_trained(class_names(folder))

    @classmethod
    def _as_trained(cls, label_names: Sequence[str]) -> TagSet:
        counts = Counter(label_names)
        # Tags are known by their names; classes need not be.
        distinct = [name if counts[name] == 1 else f"{name} ({c})" for c, name in enumerate(label_names)]
        return cls(tuple(ShownTag(name, (c,)) for c, name in enumerate(distinct)), tuple(distinct))

    @classmethod
    def read(cls, folder: Path) -> TagSet | None:
        """The tags in a model's folder, None where there are none but its classes.

        Raises `DataError` where tags.json is not of that model, has a class twice, or is damaged.
        """
        path = folder / TAGS
        if not path.exists():
            return None
        label_names = cls._as_trained(class_names(folder)).label_names
        try:
            return _parsed(read_json(path), label_names)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not tags as tagreel writes them: {error!r}", path=str(path)) from error
        except _MisfitError as error:
            raise DataError(
                f"{error}; mend it, or show the classes as trained: tagreel tags {folder} --reset",
                path=str(path),
            ) from error

    def write(self, folder: Path) -> None:
        """Write tags.json to a model's folder, whole or not at all."""
        tags = [
            {
                "name": tag.name,
                "classes": {str(c): self.label_names[c] for c in tag.classes},
                **_fit_to_json(tag.fit),
            }
            for tag in self.tags
        ]
        write_json(
            folder / TAGS,
            {
                "format": _FORMAT,
                "default": _fit_to_json(self.default),
                "fitted": None if self.fitted is None else dict(self.fitted),
                "tags": tags,
            },
        )

    @property
    def names(self) -> list[str]:
        """The name of each tag."""
        return [tag.name for tag in self.tags]

    @property
    def thresholds(self) -> Tensor:
        """The probability (S,) from which on each tag is shown; infinity where never."""
        return torch.tensor([tag.fit.threshold for tag in self.tags])

    def merged(self, values: Tensor) -> Tensor:
        """Of values by class (B, C) the highest of each tag's classes (B, S)."""
        found = values[:, self._first.to(values.device)]
        for column, tag in enumerate(self.tags):
            if len(tag.classes) > 1:
                found[:, column] = values[:, list(tag.classes)].amax(dim=1)
        return found

    def apply(self, probabilities: Tensor) -> Tensor:
        """Probabilities of classes (B, C) to calibrated ones of tags (B, S).

        A tag has the highest probability of its classes: they are merged because they mean nearly the same,
        so they come true together, and their sum, or 1 - Π(1 - p), would count one finding several times. The
        highest is never more than the probability that any of them is true; what it lacks, calibration adds.
        A tag that was not calibrated keeps it to the last bit. Calibration rises with the probability, so no
        two videos change places within a tag.
        """
        raw = self.merged(probabilities)
        slope, bias = self._lines.to(raw.device)
        as_given = (slope == 1) & (bias == 0)
        if as_given.all():
            return raw
        # Of 0 and 1 the logits are infinite, and they stay 0 and 1.
        calibrated = (slope * raw.float().logit() + bias).sigmoid()
        return torch.where(as_given, raw, calibrated.to(raw.dtype))

    @cached_property
    def _first(self) -> Tensor:
        return torch.tensor([tag.classes[0] for tag in self.tags])

    @cached_property
    def _lines(self) -> Tensor:
        return torch.tensor([(tag.fit.slope, tag.fit.bias) for tag in self.tags]).T

    def rename(self, old: str, new: str) -> TagSet:
        """The same tags, one under another name; raises `RecipeError` where another tag has that."""
        tag = self._find(old)
        if new != old and new in self.names:
            raise RecipeError(f"there is a tag {new!r} already; to show both as one, merge {old!r} into it")
        return self.shown_as(dict.fromkeys(tag.classes, new))

    def merge(self, name: str, parts: Iterable[str]) -> TagSet:
        """Several tags as one, called `name`; where there is a tag of that name they become part of it."""
        return self.shown_as({c: name for part in parts for c in self._find(part).classes})

    def drop(self, name: str) -> TagSet:
        """The tags without one."""
        return self.shown_as(dict.fromkeys(self._find(name).classes))

    def restore(self, name: str) -> TagSet:
        """The class that was called `name` in training as a tag of its own again, whatever became of it."""
        if name not in self.label_names:
            raise _unknown("class", name, self.label_names)
        label = self.label_names.index(name)
        if any(tag.name == name and tag.classes != (label,) for tag in self.tags):
            raise RecipeError(f"another tag is called {name!r}; give that one another name first")
        return self.shown_as({label: name})

    def shown_as(self, names: Mapping[int, str | None]) -> TagSet:
        """Some classes shown under other names, None for not at all; those of one name become one tag.

        Calibration and threshold stay with what is made of the same classes as before; other tags are read as
        `default` says. Raises `RecipeError` where no tag is left, or a name is empty.
        """
        now: dict[int, str | None] = {c: tag.name for tag in self.tags for c in tag.classes}
        classes: dict[str, list[int]] = {}
        for label, name in sorted((now | dict(names)).items()):
            if name is not None:
                if not name.strip():
                    raise RecipeError(f"class {label} is to have an empty name; to leave it out, drop it")
                classes.setdefault(name, []).append(label)
        if not classes:
            raise RecipeError("no tag would be left; a model has to show one")
        fits = {tag.classes: tag.fit for tag in self.tags}
        tags = (
            ShownTag(name, tuple(found), fits.get(tuple(found), self.default))
            for name, found in classes.items()
        )
        return replace(self, tags=tuple(tags))

    def with_fits(self, fits: Sequence[Fit], *, default: Fit, fitted: Mapping[str, Any]) -> TagSet:
        """The same tags, each read anew."""
        tags = (replace(tag, fit=fit) for tag, fit in zip(self.tags, fits, strict=True))
        return replace(self, tags=tuple(tags), default=default, fitted=fitted)

    def uncalibrated(self) -> TagSet:
        """The same tags with probabilities as the model gives them."""
        tags = (replace(tag, fit=Fit()) for tag in self.tags)
        return replace(self, tags=tuple(tags), default=Fit(), fitted=None)

    def export(self, path: Path) -> None:
        """Write a .csv file with the columns class, name (as trained) and tag, empty where it is dropped."""
        shown = {c: tag.name for tag in self.tags for c in tag.classes}
        with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(_COLUMNS)
            lines.writerows((c, name, shown.get(c, "")) for c, name in enumerate(self.label_names))

    def edited(self, path: Path) -> TagSet:
        """The tags as a file says that `export` wrote and somebody changed; what it lacks stays as it is.

        Raises `DataError` where a line is of no class, or names it otherwise than the model does.
        """
        names: dict[int, str | None] = {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file)
                if missing := [each for each in _COLUMNS if each not in (rows.fieldnames or ())]:
                    raise DataError(
                        f"has no column {missing[0]!r}; expected {', '.join(_COLUMNS)}, as "
                        "`tagreel tags RUN --export FILE.csv` writes them",
                        path=str(path),
                    )
                for row in rows:
                    label = self._class_of(row, f"line {rows.line_num:,}", str(path))
                    if label in names:
                        raise DataError(f"line {rows.line_num:,}: class {label} again", path=str(path))
                    names[label] = (row["tag"] or "").strip() or None
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path=str(path)) from error
        except UnicodeDecodeError as error:
            raise DataError(f"is not UTF-8 text: byte {error.start}", path=str(path)) from error
        return self.shown_as(names)

    def _class_of(self, row: Mapping[str, str | None], where: str, path: str) -> int:
        key, name = (row["class"] or "").strip(), (row["name"] or "").strip()
        if not key.isdecimal() or int(key) >= len(self.label_names):
            last = len(self.label_names) - 1
            raise DataError(f"{where}: class {key!r}; expected 0 to {last:,}", path=path)
        if name != self.label_names[int(key)].strip():
            raise DataError(
                f"{where}: class {key} is {name!r} here and {self.label_names[int(key)]!r} in the model; "
                "is it another model's file?",
                path=path,
            )
        return int(key)

    def _find(self, name: str) -> ShownTag:
        for tag in self.tags:
            if tag.name == name:
                return tag
        raise _unknown("tag", name, self.names)


def carry(source: Path, target: Path) -> None:
    """Show of a model that was made of another one the same tags; calibrated were the other one's scores."""
    tags = TagSet.read(source)
    if tags is not None:
        tags.uncalibrated().write(target)


def reset(folder: Path) -> None:
    """Show the classes of the model in a folder as trained."""
    (folder / TAGS).unlink(missing_ok=True)


class _MisfitError(Exception):
    """What is in tags.json and does not fit the model."""


def _parsed(found: Any, label_names: tuple[str, ...]) -> TagSet:
    if found["format"] != _FORMAT:
        raise _MisfitError(f"format {found['format']!r}; this tagreel reads {_FORMAT}")
    names: set[str] = set()
    seen: dict[int, str] = {}
    tags = []
    for entry in found["tags"]:
        name = entry["name"]
        if not isinstance(name, str) or not name.strip() or name in names:
            raise _MisfitError(f"a tag is called {name!r}; expected a name that no other one has")
        names.add(name)
        for key, trained in entry["classes"].items():
            if not key.isdecimal() or int(key) >= len(label_names):
                raise _MisfitError(f"{name!r} is made of class {key}; the model has {len(label_names):,}")
            if trained != label_names[int(key)]:
                raise _MisfitError(
                    f"class {key} is {trained!r} here and {label_names[int(key)]!r} in the model"
                )
            if int(key) in seen:
                raise _MisfitError(f"class {key} is in {seen[int(key)]!r} and in {name!r}; expected one tag")
            seen[int(key)] = name
        if not entry["classes"]:
            raise _MisfitError(f"{name!r} is made of no class")
        tags.append(ShownTag(name, tuple(sorted(map(int, entry["classes"]))), _fit_of_json(entry, name)))
    if not tags:
        raise _MisfitError("there is no tag")
    tags.sort(key=lambda tag: tag.classes)
    return TagSet(tuple(tags), label_names, _fit_of_json(found["default"], "default"), found["fitted"])


def _fit_to_json(fit: Fit) -> dict[str, Any]:
    return {
        "slope": fit.slope,
        "bias": fit.bias,
        "threshold": fit.threshold if math.isfinite(fit.threshold) else None,
        "positives": fit.positives,
    }


def _fit_of_json(entry: Mapping[str, Any], name: str) -> Fit:
    slope, bias, threshold = entry["slope"], entry["bias"], entry["threshold"]
    threshold = math.inf if threshold is None else threshold
    if not (0 < slope < math.inf and -math.inf < bias < math.inf and threshold >= 0):
        raise _MisfitError(
            f"{name!r} has slope {slope}, bias {bias}, threshold {threshold}; expected a slope above 0, "
            "a bias, and a threshold of 0 to 1 or null"
        )
    return Fit(slope, bias, threshold, entry["positives"])


def _unknown(what: str, name: str, known: Sequence[str]) -> RecipeError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "; `tagreel tags RUN` lists them"
    return RecipeError(f"there is no {what} {name!r}{hint}")
