"""What README and docs tell people to type is taken by its program, in blocks and in the text.

`docs_commands.py` says of each command how it is known to work; `test_docs_run.py` runs those that can be. Of the
others that is done here which comes before their work: the program's own parser takes the arguments, a config is read
with its overrides and checked, launchers and sweeps print what they would do. Python in blocks compiles, and what it
imports is there."""

import argparse
import ast
import importlib
import importlib.util
import os
import re
import runpy
import subprocess
import sys

import docs_commands
import pytest
import yaml
from absl import flags
from docs_commands import COMMANDS, IN_THE_TEXT, ROOT, SNIPPETS, Elsewhere, Like, Needs, Run, blocks, key_of

from launch import sweep
from mlagent_jax import study
from mlagent_jax.settings.flags import read_config
from mlagent_jax.settings.schema import check_field

OTHERS_PROGRAMS = (
    "docker push",
    "mlebench prepare",
    "python -u -m MLAgentBench.",
    "python -c import tensorflow_datasets",
    "python -m pytest",
)
PLACEHOLDERS = {"PID": "1", "PRICE": "1.5"}


def test_every_command_is_known_to_work_or_to_need_what_no_test_has():
    found = [" ".join(words) for _, words in docs_commands.typed()]
    assert [text for text in found if key_of(text, COMMANDS) is None] == []
    assert {key_of(text, COMMANDS) for text in found} == set(COMMANDS), "entries that no page has"


def test_every_program_in_the_text_is_one_of_them():
    programs = {*COMMANDS, *IN_THE_TEXT}
    found = [" ".join(found[0].split()) for _, found in docs_commands.inline()]
    known = {text: key_of(text, IN_THE_TEXT) or _same_program(text, programs) for text in found}
    assert [text for text, key in known.items() if key is None] == []


def _same_program(text, commands):
    """A command of the program that `text` names, and of its subcommand where it names one."""
    start = re.match(r"python (?:-m )?\S+(?: [a-z]+\b)?", text)[0]
    return next((command for command in commands if re.search(rf"(^| ){re.escape(start)}\b", command)), None)


def test_tests_that_commands_are_left_to_are_there():
    known = [*COMMANDS.values(), *IN_THE_TEXT.values(), *SNIPPETS.values()]
    assert [how.test for how in known if isinstance(how, Elsewhere) and not docs_commands.is_there(how.test)] == []
    assert [how for how in known if isinstance(how, Like) and not isinstance(COMMANDS.get(how.command), Run)] == []
    assert all(how.what for how in known if isinstance(how, Needs))


def test_every_snippet_is_run_here_or_elsewhere():
    texts = [text for _, text in blocks("python")]
    assert [text for text in texts if key_of(text, SNIPPETS) is None] == []
    assert {key_of(text, SNIPPETS) for text in texts} == set(SNIPPETS), "entries that no page has"


def not_run():
    for page, command in docs_commands.typed():
        how = COMMANDS.get(key_of(" ".join(command), COMMANDS))
        if not isinstance(how, Run):
            slow = [pytest.mark.slow] if command[0].startswith("launch/") else []
            yield pytest.param(command, id=f"{page}: {' '.join(command)[:80]}", marks=slow)


@pytest.mark.parametrize("words", list(not_run()))
def test_a_command_is_taken(words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if " ".join(words).startswith(OTHERS_PROGRAMS):
        return
    words = [_filled(word) for word in words if word != "..."]
    match words:
        case ["export", *assignments]:
            assert all(re.fullmatch(r"[A-Z_]+=.+", text) for text in assignments)
        case [".", path]:
            assert path == ".venv/bin/activate"
        case ["pip", "install", *what]:
            _take_extras(" ".join(what))
        case [("./launch/quickstart.sh" | "./tests/run.sh") as program]:
            subprocess.run(["bash", "-n", program], check=True)
            assert os.access(program, os.X_OK)
        case [program, *arguments] if program.startswith(("launch/", "./launch/")):
            done = subprocess.run(
                [program, *arguments, "--dry_run"],
                capture_output=True,
                text=True,
                check=False,
                env=os.environ
                | {"PYTHON": sys.executable, "MLAGENT_VENV": sys.prefix, "PGPASSWORD": "x", "WORKER_PGPASSWORD": "y"},
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout
        case ["python", "launch/sweep.py", *arguments]:
            (tmp_path / "members.jsonl").write_text('{"rl.value_clip": 0.1, "seed": 3}\n')
            own = [text.replace("--file=", f"--file={tmp_path}/") for text in arguments]
            assert sweep.main([*own, "--dry_run"]) == 0
        case ["python", "-m", "mlagent_jax.study", *arguments]:
            own = [text for text in arguments if not text.startswith("--workdir=")]
            assert study.main([*own, f"--workdir={tmp_path}", "--report"]) == 0
        case ["python", "-m", module, *arguments]:
            _take_arguments(_source(module, None), arguments, monkeypatch)
        case ["python", tool, *arguments]:
            monkeypatch.syspath_prepend(str((ROOT / tool).parent))
            _take_arguments(ROOT / tool, arguments, monkeypatch)
        case _:
            pytest.fail(f"nothing here knows {words[0]}")


def _filled(word):
    """A word of a command with its placeholders filled in, and the brackets of what may be left out removed."""
    word = word.strip("[]") if not word.startswith((".", "'")) else word
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{PLACEHOLDERS.get(value, value)}"


def _take_extras(what):
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (table,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTRAS"
    )
    known = {key.value for key in table.keys}
    for names in re.findall(r"\.\[([\w,]+)\]", what):
        assert set(names.split(",")) <= known


class Taken(BaseException):
    """The arguments were parsed; the work is left out."""


def _take_arguments(path, arguments, monkeypatch):
    text = path.read_text(encoding="utf-8")
    if "ArgumentParser(" not in text:
        _take_flags(ast.parse(text), arguments)
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, *given, **named):
        parse(parser, *given, **named)
        raise Taken

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    # A package that is run by name has its flags in a module of its own.
    package = next((name for name, module in PROGRAMS.items() if path == _source(module, None)), None)
    with pytest.raises(Taken):
        runpy.run_module(package, run_name="__main__") if package else runpy.run_path(str(path), run_name="__main__")


def _take_flags(tree, arguments):
    """absl's flags as a program defines them, without the import of what it computes with."""
    values = flags.FlagValues()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_"):
            kind, name = node.func.attr, node.args[0].value
            if kind == "DEFINE_config_file":
                continue
            try:
                own = [ast.literal_eval(argument) for argument in node.args[1:]]
                named = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
            except ValueError:  # choices that are computed
                kind, own, named = "DEFINE_string", [None, ""], {}
            getattr(flags, kind)(name, *own, **named, flag_values=values)
    settings = [text for text in arguments if text.startswith(("--config=", "--config."))]
    values(["program", *(text for text in arguments if text not in settings)])
    if settings:
        read_config(settings)


PROGRAMS = {
    "environments": "environments.interfaces.command_line",
    "environments.worker": "environments.worker.__main__",
}
"""Packages that are run by name, and the module whose flags they take."""


def _source(module, tool):
    if tool:
        return ROOT / tool
    name = PROGRAMS.get(module, module)
    path = ROOT / name.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("text", [pytest.param(text, id=page) for page, text in blocks("python")])
def test_python_compiles_and_finds_its_imports(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert importlib.util.find_spec(alias.name), alias.name
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_yaml_is_read():
    found = [yaml.safe_load(text) for _, text in blocks("yaml")]
    assert found
    assert all(isinstance(data, dict) for data in found)


def inline():
    for page, found in docs_commands.inline():
        yield pytest.param(found["module"], found["tool"], found["rest"], id=f"{page}: {found[0].strip()[:80]}")


def _defined(path):
    """Names of the flags that a program defines."""
    names = {"help", "alsologtostderr", "v"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE"):
                names.update(texts[:1])
            names.update(text.lstrip("-") for text in texts if re.fullmatch(r"--[\w-]+", text))
    return names


@pytest.mark.parametrize(("module", "tool", "rest"), list(inline()))
def test_the_text_names_programs_flags_and_settings_that_exist(module, tool, rest):
    """In the text commands may be shortened: a program, its flags and settings have to be there."""
    path = _source(module, tool)
    assert path.is_file(), path
    defined = _defined(path)
    for name, value in re.findall(r"(?<=\s)--([\w.-]+)(?:=(\S*))?", rest):
        if name.startswith("config."):
            check_field(name.removeprefix("config."))
        else:
            assert name in defined or name.removeprefix("no") in defined, f"--{name} is no flag of {path.name}"
        if name == "config" and value.startswith("configs/") and "<" not in value:
            assert (ROOT / value).is_file(), value
