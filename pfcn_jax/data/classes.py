"""The classes of a dataset: contiguous ids with things first, names, the dataset's own ids, and a color for each."""

from __future__ import annotations

import colorsys
import dataclasses
import importlib.resources
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Int32

Color = tuple[int, int, int]
_MAX_CATEGORY = 2**31 - 1


def default_color(index: int) -> Color:
    """An RGB color for class `index`: golden-ratio hues in alternating saturation and brightness, always the same."""
    hue = (0.02 + index * 0.6180339887498949) % 1.0
    saturation = (0.65, 0.45, 0.85)[index % 3]
    value = (0.95, 0.75)[(index // 3) % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The classes of a data set. Entry i of every field belongs to contiguous class id i; things come first.

    Fields:
      names: one name per class, unique.
      category_ids: the dataset's own ids, unique; each kind (things, stuff) in ascending order when read from COCO.
      is_thing: countable or not.
      colors: RGB, 0..255; generated when empty.
      supercategories: optional coarser names; empty or one per class.

    Raises:
      ValueError: if lengths differ, ids or names repeat, stuff comes before a thing, or a color is not three bytes.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    is_thing: tuple[bool, ...]
    colors: tuple[Color, ...] = ()
    supercategories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("a class table needs at least one class")
        if not self.colors:
            object.__setattr__(self, "colors", tuple(default_color(i) for i in range(len(self.names))))
        for field in ("category_ids", "is_thing", "colors"):
            if len(getattr(self, field)) != len(self.names):
                raise ValueError(f"{len(self.names)} class names but {len(getattr(self, field))} {field}")
        if self.supercategories and len(self.supercategories) != len(self.names):
            raise ValueError(f"{len(self.names)} class names but {len(self.supercategories)} supercategories")
        _require_unique("category id", self.category_ids)
        _require_unique("class name", self.names)
        if list(self.is_thing) != sorted(self.is_thing, reverse=True):
            raise ValueError("things must come before stuff; use ClassTable.from_coco to order them")
        for name, color in zip(self.names, self.colors):
            if len(color) != 3 or not all(0 <= int(part) <= 255 for part in color):
                raise ValueError(f"class {name!r}: color {color} is not three values of 0..255")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_things(self) -> int:
        return sum(self.is_thing)

    @property
    def num_stuff(self) -> int:
        return len(self.names) - self.num_things

    @property
    def counts(self) -> tuple[int, int]:
        """(number of thing classes, number of stuff classes)."""
        return self.num_things, self.num_stuff

    @property
    def class_of_category(self) -> dict[int, int]:
        """The dataset's category id -> contiguous class id."""
        return {category: index for index, category in enumerate(self.category_ids)}

    def difference(self, other: ClassTable) -> str:
        """The first difference to another table, for a message; "" if both mean the same (colors may differ)."""
        ours, theirs = (list(zip(table.names, table.category_ids, table.is_thing)) for table in (self, other))
        for index, (own, found) in enumerate(zip(ours, theirs)):
            if own != found:
                return f"class {index} is {_describe(*own)} here, {_describe(*found)} there"
        return "" if len(ours) == len(theirs) else f"{len(ours)} classes here, {len(theirs)} there"

    @property
    def palette(self) -> Int32[np.ndarray, "classes 3"]:
        """The colors as an array, RGB."""
        return np.array(self.colors, np.int32)

    @classmethod
    def from_coco(cls, categories: Iterable[Mapping[str, Any]]) -> ClassTable:
        """The table of a COCO-panoptic file's `categories`: things by ascending id, then stuff by ascending id.

        Each entry needs `id`, `name` and `isthing` (0 or 1). A `color` is [R, G, B] or "#rrggbb"; any other, or none,
        is replaced by a default: colors decide nothing. Supercategories are used when every entry has one.

        Raises:
          ValueError: no list, an entry without one of the three or with another type, repeated ids or names.
        """
        if not isinstance(categories, Iterable) or isinstance(categories, (str, Mapping)):
            raise ValueError(f"categories must be a list, got {categories!r:.60}")
        entries = list(categories)
        for position, entry in enumerate(entries):
            _check_category(position, entry)
        _require_unique("category id", [entry["id"] for entry in entries])
        entries.sort(key=lambda entry: (not entry["isthing"], entry["id"]))
        colors = (_read_color(entry.get("color")) or default_color(i) for i, entry in enumerate(entries))
        supercategories = [str(name) if is_text(name := entry.get("supercategory")) else "" for entry in entries]
        return cls(
            names=tuple(str(entry["name"]) for entry in entries),
            category_ids=tuple(int(entry["id"]) for entry in entries),
            is_thing=tuple(bool(entry["isthing"]) for entry in entries),
            colors=tuple(colors),
            supercategories=tuple(supercategories) if all(supercategories) else (),
        )

    def to_coco(self) -> list[dict[str, Any]]:
        """The `categories` of a COCO-panoptic file; `from_coco` reads them back to an equal table."""
        entries = []
        for index, name in enumerate(self.names):
            entry = {"id": self.category_ids[index], "name": name, "isthing": int(self.is_thing[index])}
            entry["color"] = list(self.colors[index])
            if self.supercategories:
                entry["supercategory"] = self.supercategories[index]
            entries.append(entry)
        return entries

    def to_json(self) -> dict[str, Any]:
        """Plain lists, ready for `json.dump`."""
        return {
            "names": list(self.names),
            "category_ids": list(self.category_ids),
            "is_thing": list(self.is_thing),
            "colors": [list(color) for color in self.colors],
            "supercategories": list(self.supercategories),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClassTable:
        """The inverse of `to_json`.

        Raises:
          ValueError: a field is missing, or the table is not valid.
        """
        missing = [key for key in ("names", "category_ids", "is_thing") if key not in value]
        if missing:
            raise ValueError(f"a class table without {', '.join(missing)}")
        return cls(
            names=tuple(str(name) for name in value["names"]),
            category_ids=tuple(int(category) for category in value["category_ids"]),
            is_thing=tuple(bool(thing) for thing in value["is_thing"]),
            colors=tuple((int(c[0]), int(c[1]), int(c[2])) for c in value.get("colors", ())),
            supercategories=tuple(str(name) for name in value.get("supercategories", ())),
        )


def is_text(value: Any) -> TypeGuard[str]:
    """True for text that can be written to a file: JSON may hold half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _check_category(position: int, entry: Any) -> None:
    """Raises ValueError unless an entry of `categories` has a usable id, name and isthing."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"categories[{position}] is {entry!r:.60}, must be an object")
    missing = [key for key in ("id", "name", "isthing") if key not in entry]
    if missing:
        raise ValueError(f"category {entry.get('name', position)!r}: no {', '.join(missing)} (has {sorted(entry)})")
    if not is_text(entry["name"]) or not entry["name"]:
        raise ValueError(f"categories[{position}]: name is {entry['name']!r:.60}, must be text")
    if type(entry["id"]) is not int or not 0 <= entry["id"] <= _MAX_CATEGORY:
        wanted = f"must be a whole number from 0 to {_MAX_CATEGORY}"
        raise ValueError(f"category {entry['name']!r}: id is {entry['id']!r:.60}, {wanted}")
    if type(entry["isthing"]) not in (int, bool) or entry["isthing"] not in (0, 1):
        raise ValueError(f"category {entry['name']!r}: isthing is {entry['isthing']!r:.60}, must be 0 or 1")


def parse_color(text: str) -> Color | None:
    """RGB of `#rrggbb`; None for other text."""
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        return None
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _read_color(value: Any) -> Color | None:
    """RGB of [R, G, B] or "#rrggbb"; None for anything else."""
    if isinstance(value, str):
        return parse_color(value)
    is_triple = isinstance(value, (list, tuple)) and len(value) == 3
    if not is_triple or not all(type(part) in (int, float) and 0 <= part <= 255 for part in value):
        return None
    return int(value[0]), int(value[1]), int(value[2])


def _require_unique(what: str, values: Sequence[Any]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1}, key=str)
    if repeated:
        raise ValueError(f"repeated {what}: {', '.join(str(value) for value in repeated)}")


def coco_classes() -> ClassTable:
    """COCO panoptic's 80 things and 53 stuff classes, for weights that come without their data set."""
    text = importlib.resources.files("pfcn_jax.data").joinpath("coco_classes.json").read_text()
    return ClassTable.from_coco(json.loads(text))


def _describe(name: str, category_id: int, is_thing: bool) -> str:
    return f"{name!r} (category {category_id}, {'thing' if is_thing else 'stuff'})"
