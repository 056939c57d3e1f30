"""Sources of tables for suites, by name.

An installed package adds a source with an entry point of the group `mlagent_jax.task_sources`: a function without
arguments that returns a `base.Source`.
"""

from __future__ import annotations

from collections.abc import Callable

from environments.factory.sources.base import Candidate, Source
from environments.factory.sources.generated import GeneratedSource
from environments.factory.sources.packages import PackageSource
from environments.factory.sources.remote import HuggingFaceSource, KaggleSource, OpenMlSource
from environments.registry import Registry

__all__ = ["SOURCES", "Candidate", "Source"]

SOURCES: Registry[Callable[[], Source]] = Registry("source", group="mlagent_jax.task_sources")
"""Sources by name."""
SOURCES.register("packages")(PackageSource)
SOURCES.register("openml")(OpenMlSource)
SOURCES.register("huggingface")(HuggingFaceSource)
SOURCES.register("kaggle")(KaggleSource)
SOURCES.register("generated")(GeneratedSource)
