"""Fields of options dataclasses that state their own bounds and what they affect."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar, cast

T = TypeVar("T")
# "weights": a training with another value gives another model. "scores": the same weights score differently.
# "precision": rounding, in training and prediction; may change after training. "speed": time and memory, not results.
# "run": how often a run reports, saves and evaluates.
Affects = Literal["weights", "scores", "precision", "speed", "run"]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Interval of a number; None: no bound on that side."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """True if `value` lies inside; NaN never does."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least:g} to {self.at_most:g}"
        named = (("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below))
        return " and ".join(f"{word} {bound:g}" for word, bound in named if bound is not None)


def setting(default: T, *, affects: Affects = "weights", dynamic: bool = False, **bounds: float) -> T:
    """A field of an options dataclass.

    Args:
      affects: the consequence of another value.
      dynamic: may be an array, as data of a compiled program; other fields are compiled in.
      bounds: any of the fields of `Bounds`.
    """
    metadata = {"affects": affects, "dynamic": dynamic, "bounds": Bounds(**bounds)}
    return cast(T, dataclasses.field(default=default, metadata=metadata))


def bounds_of(field: dataclasses.Field[Any]) -> Bounds:
    """The bounds of a field; none for a field without metadata."""
    return field.metadata.get("bounds", Bounds())


def names_affecting(options: Any, *kinds: Affects) -> tuple[str, ...]:
    """Names of the fields of an options class that affect one of `kinds` (weights, unless a field says otherwise)."""
    return tuple(f.name for f in dataclasses.fields(options) if f.metadata.get("affects", "weights") in kinds)


def dynamic_names(options: Any) -> tuple[str, ...]:
    """Names of the fields of an options class that may be arrays."""
    return tuple(field.name for field in dataclasses.fields(options) if field.metadata.get("dynamic"))
