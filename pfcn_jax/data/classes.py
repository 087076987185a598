"""The classes of a dataset: contiguous ids with things first, names, the dataset's own ids, and a colour for each."""

from __future__ import annotations

import colorsys
import dataclasses
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

Color = tuple[int, int, int]


def default_color(index: int) -> Color:
    """An RGB colour for class `index`: golden-ratio hues in alternating saturation and brightness, always the same."""
    hue = (0.02 + index * 0.6180339887498949) % 1.0
    saturation = (0.65, 0.45, 0.85)[index % 3]
    value = (0.95, 0.75)[(index // 3) % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """Everything known about the classes. Entry i of every field belongs to contiguous class id i; things come first.

    Fields:
      names: one name per class, unique.
      category_ids: the dataset's own ids, unique; each kind (things, stuff) in ascending order when read from COCO.
      is_thing: countable or not.
      colors: RGB, 0..255; generated when empty.
      supercategories: optional coarser names; empty or one per class.

    Raises:
      ValueError: if lengths differ, ids or names repeat, stuff comes before a thing, or a colour is not three bytes.
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
                raise ValueError(f"class {name!r}: colour {color} is not three values of 0..255")

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
        """What another table calls otherwise, for a message; "" if both mean the same (colours may differ)."""
        ours, theirs = (list(zip(table.names, table.category_ids, table.is_thing)) for table in (self, other))
        for index, (own, found) in enumerate(zip(ours, theirs)):
            if own != found:
                return f"class {index} is {_describe(*own)} here, {_describe(*found)} there"
        return "" if len(ours) == len(theirs) else f"{len(ours)} classes here, {len(theirs)} there"

    @property
    def palette(self) -> Int32[np.ndarray, "classes 3"]:
        """The colours as an array, RGB."""
        return np.array(self.colors, np.int32)

    @classmethod
    def from_coco(cls, categories: Iterable[Mapping[str, Any]]) -> ClassTable:
        """The table of a COCO-panoptic file's `categories`: things by ascending id, then stuff by ascending id.

        Each entry needs `id`, `name` and `isthing` (0 or 1); `color` and `supercategory` are used when every entry
        has them (a partly coloured list keeps the colours it has).

        Raises:
          ValueError: an entry without one of the three, an `isthing` that is not 0 or 1, repeated ids or names.
        """
        entries = list(categories)
        for position, entry in enumerate(entries):
            missing = [key for key in ("id", "name", "isthing") if key not in entry]
            if missing:
                raise ValueError(
                    f"category {entry.get('name', position)!r}: no {', '.join(missing)} (has {sorted(entry)})"
                )
            if entry["isthing"] not in (0, 1):
                raise ValueError(f"category {entry['name']!r}: isthing is {entry['isthing']!r}, not 0 or 1")
        _require_unique("category id", [entry["id"] for entry in entries])
        entries.sort(key=lambda entry: (not entry["isthing"], entry["id"]))
        colors = (entry.get("color") or default_color(i) for i, entry in enumerate(entries))
        supercategories = [str(entry.get("supercategory", "")) for entry in entries]
        return cls(
            names=tuple(str(entry["name"]) for entry in entries),
            category_ids=tuple(int(entry["id"]) for entry in entries),
            is_thing=tuple(bool(entry["isthing"]) for entry in entries),
            colors=tuple((int(color[0]), int(color[1]), int(color[2])) for color in colors),
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
