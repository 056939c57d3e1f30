"""Conversion of plain data to nested frozen dataclasses, with checks of names and types; errors name the field."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterator
from typing import Any, ClassVar, get_origin, get_type_hints

from mlagent_jax.runtime.errors import ConfigError


def read(cls: type, data: Any, path: str) -> Any:
    """Convert `data`, from JSON or flags, to a `cls`; missing fields get their defaults.

    Args:
      path: Name of `data` in messages.

    Raises:
      ConfigError: An unknown field (the nearest is named) or a wrong type.
    """
    if not isinstance(data, dict):
        names = ", ".join(field.name for field in dataclasses.fields(cls))
        raise ConfigError(f"{path} is {data!r}; it is a section with the fields {names}")
    values = {}
    for name, value in data.items():
        kind, place = _kind(cls, name, path), f"{path}.{name}"
        values[name] = read(kind, value, place) if dataclasses.is_dataclass(kind) else _typed(kind, value, place)
    return cls(**values)


def find(cls: type, field: str, path: str) -> Any:
    """Return the type of `field` of a `cls` that is called `path`, for example `rl.loss`.

    Raises:
      ConfigError: There is no such field; the message names the nearest.
    """
    kind: Any = cls
    above = path
    for name in field.split("."):
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(f"{above} is a field, not a section: {path}.{field} is none")
        kind, above = _kind(kind, name, above), f"{above}.{name}"
    return kind


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    """Return the types of the fields by name; cached, because this is most of the time of reading a config."""
    return {name: kind for name, kind in get_type_hints(cls).items() if get_origin(kind) is not ClassVar}


def _kind(cls: type, name: str, path: str) -> Any:
    """Return the type of a field. A class may map removed fields to their replacements in `MOVED`."""
    types = _types(cls)
    if place := getattr(cls, "MOVED", {}).get(name):
        raise ConfigError(f"{path}.{name} has moved: set {place}")
    if name not in types:
        raise ConfigError(f"{path}.{name} is no field; did you mean {_meant(cls, name, path)}?")
    return types[name]


def _meant(cls: type, name: str, path: str) -> str:
    """Return the full name of the field that was probably meant by the unknown `name` in a `cls` called `path`."""
    leaves = {place: place.rpartition(".")[2] for place in paths(cls, path)}
    near = difflib.get_close_matches(name, _types(cls), n=1, cutoff=0.6)
    for leaf in (name, *(() if near else difflib.get_close_matches(name, set(leaves.values()), n=1, cutoff=0.8))):
        if below := [place for place, last in leaves.items() if last == leaf]:
            return " or ".join(below[:3])
    near = near or difflib.get_close_matches(name, _types(cls), n=1, cutoff=0.0)
    return f"{path}.{near[0]}"


def paths(cls: type, path: str) -> Iterator[str]:
    """Yield the full names of all fields of a `cls` called `path`."""
    for name, kind in _types(cls).items():
        yield f"{path}.{name}"
        if dataclasses.is_dataclass(kind):
            yield from paths(kind, f"{path}.{name}")


def _typed(kind: Any, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, bool):
        raise ConfigError(f"{path} is {value!r}; it takes an int")
    if kind in (int, float, str, bool):
        if not isinstance(value, kind):
            raise ConfigError(f"{path} is {value!r} ({type(value).__name__}); it takes a {kind.__name__}")
        return value
    # The remaining kind of field is tuple[str, ...]. One flag value may hold several names, `a,b`.
    if isinstance(value, str):
        value = value.split(",") if value else ()
    if not isinstance(value, (tuple, list)) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{path} is {value!r}; it takes a tuple of names, for example ('a', 'b')")
    return tuple(name for item in value for name in item.split(",") if name)
