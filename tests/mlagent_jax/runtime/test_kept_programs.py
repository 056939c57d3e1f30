"""Compiled programs are kept in the workdir, and found there by the next start."""

import jax
import jax.numpy as jnp
import pytest

from mlagent_jax.runtime.compilations import _use, kept_in

HITS = "/jax/compilation_cache/cache_hits"


@pytest.fixture
def without_a_folder(monkeypatch):
    before, least = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    _use(None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    _use(before)


def test_a_second_start_finds_the_programs_of_the_first(without_a_folder, tmp_path):
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event == HITS else None)

    def program(x):
        return jnp.sin(x) * 1.2345

    with kept_in(tmp_path / "xla"):
        jax.jit(program)(jnp.ones(7)).block_until_ready()
    assert list((tmp_path / "xla").iterdir())
    assert not hits
    jax.clear_caches()
    with kept_in(tmp_path / "xla"):
        jax.jit(program)(jnp.ones(7)).block_until_ready()
    assert hits
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_the_user_named_stays_in_use(without_a_folder, tmp_path):
    _use(str(tmp_path / "own"))
    with kept_in(tmp_path / "xla"):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
