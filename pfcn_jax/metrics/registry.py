"""Metrics by name. A metric is one file that registers its class; nothing else in the package names it.

A file in this folder is found by itself. One outside of the package is named `module:name` in the config
(`evaluation.metrics = ("pq", "my_metrics:void_share")`): the module is imported, and registers `void_share`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import TypeVar

from pfcn_jax import metrics
from pfcn_jax.errors import ConfigError
from pfcn_jax.metrics.protocol import Metric

M = TypeVar("M", bound=type[Metric])

_METRICS: dict[str, type[Metric]] = {}


def register(name: str) -> Callable[[M], M]:
    """Decorates a `Metric` class: it becomes metric `name`.

    Raises:
      ValueError: another file has registered that name.
    """

    def add(metric: M) -> M:
        other = _METRICS.get(name)
        if other is not None and other.__module__ != metric.__module__:
            raise ValueError(f"metric {name!r} of {metric.__module__}: {other.__module__} has registered that name")
        _METRICS[name] = metric
        return metric

    return add


def find_metrics(names: Sequence[str]) -> dict[str, type[Metric]]:
    """The metrics of these names, by their short names.

    Raises:
      ConfigError: a module cannot be imported, or no metric has a name; it lists the known ones.
    """
    found = [_find(name) for name in names]
    return dict(found)


def _find(name: str) -> tuple[str, type[Metric]]:
    module, _, short = name.rpartition(":")
    own = f"{metrics.__name__}.{short}"
    try:
        if module:
            importlib.import_module(module)
        elif short not in _METRICS and own in _own_modules():
            importlib.import_module(own)  # only this one: AP alone needs pycocotools
    except ImportError as error:
        raise ConfigError(
            f"config.evaluation.metrics: cannot import {error.name or module!r} for {name!r} ({error}); "
            "is its folder on PYTHONPATH?"
        ) from error
    if short not in _METRICS:
        known = _known()
        near = difflib.get_close_matches(short, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"config.evaluation.metrics: no metric {short!r}{hint} (known: {', '.join(known)}; your own: "
            "module:name, docs/extending.md)"
        )
    return short, _METRICS[short]


def _own_modules() -> list[str]:
    return [f"{metrics.__name__}.{module.name}" for module in pkgutil.iter_modules(metrics.__path__)]


def _known() -> list[str]:
    for module in _own_modules():
        importlib.import_module(module)
    return sorted(_METRICS)
