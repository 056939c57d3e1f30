"""Functions by name: how they are registered, found, given parameters, and how a mistake is answered."""

import importlib.metadata
import os
import sys
from typing import Annotated, Literal

import pytest

from environments.registry import PLUGINS_VARIABLE, Range, Registry, RegistryError, parameters_of, use_plugins


@pytest.fixture
def sums(monkeypatch):
    monkeypatch.delenv(PLUGINS_VARIABLE, raising=False)
    sums = Registry("sum", group="mlagent_jax.test_sums")

    @sums.register
    def plain(left, right):
        """Left and right."""
        return left + right

    @sums.register("scaled")
    def _(
        left,
        right,
        *,
        factor: Annotated[float, "Weight of the right term.", Range(0, 10, open_low=True)] = 2.0,
        times: int = 1,
        negate: bool = False,
        mode: Literal["sum", "product"] = "sum",
    ):
        value = left + factor * right if mode == "sum" else left * factor * right
        return (-value if negate else value) * times

    return sums


def test_a_name_gives_the_function_with_its_defaults(sums):
    assert sums.names() == ("plain", "scaled")
    assert sums.choose("plain")(1, 2) == 3
    assert sums.choose("scaled")(1, 2) == 5


def test_parameters_stand_behind_the_name_and_are_read_by_their_kind(sums):
    choice = sums.choose("scaled: factor=3, times=2,negate=true,mode=product")
    assert dict(choice.parameters) == {"factor": 3.0, "times": 2, "negate": True, "mode": "product"}
    assert choice["factor"] == 3.0
    assert choice(1, 2) == -12


def test_equal_choices_are_one_key(sums):
    assert len({sums.choose("scaled:factor=2"), sums.choose("scaled"), sums.bind("scaled", factor=2)}) == 1
    assert sums.choose("scaled:factor=1") != sums.choose("scaled")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("plane", r"sum is 'plane'; choose one of plain, scaled\. Did you mean 'plain'\?"),
        ("", "sum is ''; choose one of plain, scaled"),
        ("plain:factor=2", "sum plain has no parameter 'factor'; it has no parameters"),
        ("scaled:facto=2", "no parameter 'facto'; its parameters are factor, times, negate, mode"),
        ("scaled:factor=x", "sum scaled: factor is 'x'; it must be a finite number"),
        ("scaled:factor=nan", "factor is 'nan'; it must be a finite number"),
        ("scaled:factor", "factor is ''; it must be a finite number"),
        ("scaled:factor=0", "factor is 0.0; it must be above 0 and at most 10"),
        ("scaled:times=1.5", "times is '1.5'; it must be a whole number"),
        ("scaled:negate=maybe", "negate is 'maybe'; it must be true or false"),
        ("scaled:mode=mean", "mode is 'mean'; choose one of sum, product"),
        ("scaled:times=1,times=2", "gives times twice"),
    ],
)
def test_a_mistake_is_named_with_what_is_possible(sums, choice, message):
    with pytest.raises(RegistryError, match=message):
        sums.choose(choice)


def test_a_parameter_without_default_must_be_given(sums):
    @sums.register
    def needy(left, right, *, weight: float):
        return weight

    assert sums.choose("needy:weight=2")(0, 0) == 2.0
    with pytest.raises(RegistryError, match="needs weight: write needy:weight=VALUE"):
        sums.choose("needy")


def test_a_name_is_given_once(sums):
    with pytest.raises(RegistryError, match=r"'plain' .* rename one"):
        sums.register("plain")(lambda left, right: 0)


@pytest.mark.parametrize("annotation", [list, "missing", Literal[1, 2], None])
def test_a_parameter_of_an_unknown_kind_is_refused_where_it_is_registered(sums, annotation):
    def odd(left, right, *, extra=()):
        return 0

    odd.__annotations__ = {} if annotation is None else {"extra": annotation}
    with pytest.raises(RegistryError, match="odd"):
        sums.register(odd)


def test_a_default_out_of_range_is_refused(sums):
    def odd(left, right, *, share: Annotated[float, Range(0, 1)] = 2.0):
        return 0

    with pytest.raises(RegistryError, match=r"share is 2\.0"):
        sums.register(odd)


def test_only_parameters_are_evaluated(sums):
    def lazy(left: "NotImported", *, share: "Annotated[float, 'A share.']" = 1.0):  # noqa: F821
        return 0

    (parameter,) = parameters_of(sums.register(lazy))
    assert (parameter.kind, parameter.description) == (float, "A share.")


def test_what_there_is_to_choose_can_be_printed(sums):
    text = sums.describe()
    assert "plain: Left and right." in text
    assert "factor (float, default 2.0, above 0 and at most 10) Weight of the right term." in text


def test_an_installed_package_adds_a_function(sums, monkeypatch, tmp_path):
    (tmp_path / "sums_package.py").write_text("def product(left, right):\n    return left * right\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        importlib.metadata.EntryPoint("product", "sums_package:product", "mlagent_jax.test_sums"),
        importlib.metadata.EntryPoint("lost", "sums_package:lost", "mlagent_jax.test_sums"),
    ]
    found = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: points if group == sums.group else found(group=group)
    )
    assert sums.choose("product")(3, 4) == 12
    assert sums.choose("product")(3, 4) == 12
    assert "product" in sums.names()
    with pytest.raises(RegistryError, match="entry point lost = sums_package:lost"):
        sums.get("lost")


PLUGIN = """\
import shared_sums

@shared_sums.SUMS.register
def difference(left, right):
    return left - right
"""


def test_plugins_are_imported_where_their_names_are_needed(sums, monkeypatch, tmp_path):
    shared = type(sys)("shared_sums")
    shared.SUMS = sums
    monkeypatch.setitem(sys.modules, "shared_sums", shared)
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    monkeypatch.setenv(PLUGINS_VARIABLE, str(file))
    assert sums.choose("plain")(1, 1) == 2
    assert "difference" not in sums._functions
    assert sums.choose("difference")(3, 1) == 2
    assert "difference" in sums.names()


def test_plugins_of_a_run_are_known_to_the_processes_that_it_starts(sums, monkeypatch, tmp_path):
    shared = type(sys)("shared_sums")
    shared.SUMS = sums
    monkeypatch.setitem(sys.modules, "shared_sums", shared)
    monkeypatch.setenv(PLUGINS_VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    use_plugins(["mine.py"])
    use_plugins(["mine.py"])
    assert os.environ[PLUGINS_VARIABLE] == str(tmp_path / "mine.py")
    assert "difference" in sums.names()


@pytest.mark.parametrize("plugin", ["broken.py", "absent.py", "no_such_module_anywhere"])
def test_a_plugin_that_cannot_be_imported_is_named(sums, monkeypatch, tmp_path, plugin):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PLUGINS_VARIABLE, plugin)
    with pytest.raises(RegistryError, match=f"plugin .*{plugin}: "):
        sums.get("difference")
