"""Functions that users choose by name and may add to: rewards here; estimators, losses and controllers in the trainer.

A registry holds functions of one signature. A function's keyword-only arguments are its parameters:

    LOSSES = Registry[Loss]("policy loss", group="mlagent_jax.policy_losses")

    @LOSSES.register
    def clip(batch, *, low: Annotated[float, "Clip range below 1.", Range(0, 1)] = 0.2):
        ...

    loss = LOSSES.choose("clip:low=0.1")    # a `Choice`: hashable, called like the function

A name is looked up in this order: registered functions; entry points of installed packages in `group`
(`my_loss = my_package.losses:my_loss`); plugins, which are files or modules that register functions on import.
`MLAGENT_PLUGINS` names the plugins, so every process that inherits it knows the same names.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

PLUGINS_VARIABLE = "MLAGENT_PLUGINS"
"""Environment variable that lists the plugins: paths of Python files and names of modules, separated by commas."""
_KINDS = (bool, int, float, str)
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_NO_DEFAULT = inspect.Parameter.empty

F = TypeVar("F", bound=Callable[..., Any])


class RegistryError(ValueError):
    """An invalid name, parameter or plugin. The message names it and the valid values."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a numeric parameter, both inclusive unless `open_low` is set."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open_low else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        above = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        bounds = [above] * (self.low > -math.inf) + [f"at most {self.high:g}"] * (self.high < math.inf)
        return " and ".join(bounds)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One keyword-only argument of a registered function.

    Its annotation is `Annotated[kind, "description", Range(...)]`; description and range are optional. The kind is
    bool, int, float, str or `Literal` of strings.
    """

    name: str
    kind: type
    default: Any
    """Default value; `inspect.Parameter.empty` if the parameter is required."""
    description: str = ""
    range: Range | None = None
    choices: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is _NO_DEFAULT

    def __str__(self) -> str:
        default = "required" if self.required else f"default {self.default}"
        bounds = f", {self.range}" if self.range else ""
        return f"{self.name} ({self.kind.__name__}, {default}{bounds}) {self.description}"

    def read(self, value: Any) -> Any:
        """Convert `value`, which may be text, to the parameter's kind, and check it.

        Raises:
          RegistryError: the value has another kind, is out of range, or is not one of the choices.
        """
        read = _read(self.kind, value)
        if read is None or (self.kind is float and not math.isfinite(read)):
            raise RegistryError(f"{self.name} is {value!r}; it must be {_WHAT[self.kind]}")
        if self.range is not None and read not in self.range:
            raise RegistryError(f"{self.name} is {read!r}; it must be {self.range}")
        if self.choices and read not in self.choices:
            raise RegistryError(f"{self.name} is {read!r}; choose one of {', '.join(self.choices)}")
        return read


@dataclasses.dataclass(frozen=True)
class Choice(Generic[F]):
    """A registered function with its parameters set.

    Choices compare and hash by value, so a choice may be a static argument of a compiled function.
    """

    name: str
    function: F
    parameters: tuple[tuple[str, Any], ...] = ()
    """All parameters by name, defaults included."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs, **dict(self.parameters))

    def __getitem__(self, name: str) -> Any:
        """Return the value of a parameter."""
        return dict(self.parameters)[name]


class Registry(Generic[F]):
    """Functions of one signature, by name.

    Args:
      kind: what the functions are, for messages: `reward`.
      group: entry-point group through which installed packages add functions.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._functions: dict[str, F] = {}

    @overload
    def register(self, function: F, /) -> F: ...
    @overload
    def register(self, name: str, /) -> Callable[[F], F]: ...
    def register(self, function_or_name: F | str, /) -> F | Callable[[F], F]:
        """Add a function, as a decorator, under its own name or the given one.

        Raises:
          RegistryError: the name is taken, or `Parameter` does not support a parameter's annotation.
        """
        if isinstance(function_or_name, str):
            return lambda function: self._add(function_or_name, function)
        return self._add(function_or_name.__name__, function_or_name)

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted. Imports the plugins.

        Raises:
          RegistryError: a plugin cannot be imported.
        """
        for plugin in plugins():
            import_plugin(plugin)
        return tuple(sorted({*self._functions, *self._installed()}))

    def get(self, name: str) -> F:
        """Return the function called `name`.

        Raises:
          RegistryError: there is none; the message lists the names and the closest match.
        """
        point = None if name in self._functions else self._installed().get(name)
        if point is not None:
            try:
                return self._add(name, point.load())
            except (ImportError, AttributeError, TypeError) as error:
                raise RegistryError(f"entry point {name} = {point.value} of {self.group}: {error}") from error
        for plugin in plugins():
            if name in self._functions:
                break
            import_plugin(plugin)
        if name not in self._functions:
            raise RegistryError(f"{self.kind} is {name!r}; choose one of {', '.join(self.names())}{self._near(name)}")
        return self._functions[name]

    def choose(self, choice: str) -> Choice[F]:
        """Return the function and parameters in `choice`: `name`, or `name:parameter=value,parameter=value`.

        Raises:
          RegistryError: there is no such function or parameter, or a value is invalid.
        """
        name, _, rest = choice.partition(":")
        pairs = [pair.partition("=") for pair in rest.split(",") if pair.strip()]
        given = [key.strip() for key, _, _ in pairs]
        if twice := sorted({key for key in given if given.count(key) > 1}):
            raise RegistryError(f"{self.kind} {choice!r} gives {twice[0]} twice")
        return self.bind(name.strip(), **{key.strip(): value.strip() for key, _, value in pairs})

    def bind(self, name: str, **values: Any) -> Choice[F]:
        """Return the function called `name` with the parameters in `values`, the others at their defaults.

        Raises:
          RegistryError: as for `choose`.
        """
        function = self.get(name)
        known = {parameter.name: parameter for parameter in parameters_of(function)}
        if unknown := [key for key in values if key not in known]:
            has = f"its parameters are {', '.join(known)}" if known else "it has no parameters"
            raise RegistryError(f"{self.kind} {name} has no parameter {unknown[0]!r}; {has}")
        if missing := [key for key, parameter in known.items() if parameter.required and key not in values]:
            raise RegistryError(f"{self.kind} {name} needs {missing[0]}: write {name}:{missing[0]}=VALUE")
        try:
            read = [(key, known[key].read(values[key]) if key in values else known[key].default) for key in known]
        except RegistryError as error:
            raise RegistryError(f"{self.kind} {name}: {error}") from error
        return Choice(name, function, tuple(read))

    def describe(self) -> str:
        """Return a text with every function, the first line of its docstring, and its parameters."""
        lines = []
        for name in self.names():
            function = self.get(name)
            lines.append(f"{name}: {(inspect.getdoc(function) or '').partition(chr(10))[0]}")
            for parameter in parameters_of(function):
                lines.append(f"  {parameter}")
        return "\n".join(lines)

    def _add(self, name: str, function: F) -> F:
        if not callable(function) or not name or set(name) & set(":,= "):
            raise RegistryError(f"{name!r} = {function!r} cannot be a {self.kind}: give a function and a plain name")
        if self._functions.get(name, function) is not function:
            other = self._functions[name].__module__
            raise RegistryError(f"{self.kind} {name!r} of {function.__module__} is also in {other}: rename one")
        parameters_of(function)
        self._functions[name] = function
        return function

    def _installed(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=self.group)}

    def _near(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._functions, 1)
        return f". Did you mean {near[0]!r}?" if near else ""


@functools.cache
def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return the keyword-only arguments of a function.

    Raises:
      RegistryError: `Parameter` does not support an annotation.
    """
    keyword_only = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    # Evaluate only these: other annotations may name imports that exist for type checkers alone.
    holder = types.SimpleNamespace(__annotations__={p.name: p.annotation for p in keyword_only})
    try:
        hints = typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {}), include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        raise RegistryError(f"{function.__name__}: an annotation cannot be read: {error}") from error
    return tuple(_parameter(p.name, hints.get(p.name), p.default, function.__name__) for p in keyword_only)


def plugins() -> tuple[str, ...]:
    """Return the plugins that `MLAGENT_PLUGINS` names."""
    return tuple(filter(None, (part.strip() for part in os.environ.get(PLUGINS_VARIABLE, "").split(","))))


def use_plugins(added: Sequence[str]) -> None:
    """Import plugins and add them to `MLAGENT_PLUGINS`, for this process and its children.

    Raises:
      RegistryError: a plugin cannot be imported, or registers a name that is taken.
    """
    paths = [str(Path(plugin).resolve()) if plugin.endswith(".py") else plugin for plugin in added]
    os.environ[PLUGINS_VARIABLE] = ",".join(dict.fromkeys([*plugins(), *paths]))
    for plugin in plugins():
        import_plugin(plugin)


def import_plugin(plugin: str) -> types.ModuleType:
    """Import a file (a path that ends in .py) or a module, once per process.

    Raises:
      RegistryError: the plugin cannot be imported.
    """
    try:
        if not plugin.endswith(".py"):
            return importlib.import_module(plugin)
        path = Path(plugin).resolve()
        name = f"mlagent_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except Exception as error:  # A user's file may raise anything.
        raise RegistryError(f"plugin {plugin}: {type(error).__name__}: {error}") from error


_WHAT = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


def _read(kind: type, value: Any) -> Any:
    """Convert `value`, which may be text, to `kind`; None if it is not of that kind."""
    if kind is bool:
        return _TRUTH.get(value.lower()) if isinstance(value, str) else (value if isinstance(value, bool) else None)
    if isinstance(value, bool):
        return None
    if kind is str:
        return value if isinstance(value, str) else None
    try:
        if kind is int and not isinstance(value, str) and int(value) != value:
            return None
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _parameter(name: str, hint: Any, default: Any, owner: str) -> Parameter:
    notes = getattr(hint, "__metadata__", ())
    kind = typing.get_args(hint)[0] if notes else hint
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    kind = str if choices else kind
    if kind not in _KINDS or not all(isinstance(choice, str) for choice in choices):
        raise RegistryError(f"{owner}: {name} needs an annotation: bool, int, float, str or Literal of strings")
    described = next((note for note in notes if isinstance(note, str)), "")
    bounds = next((note for note in notes if isinstance(note, Range)), None)
    parameter = Parameter(name, kind, default, described, bounds, choices)
    if not parameter.required:
        parameter.read(default)
    return parameter
