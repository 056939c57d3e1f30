"""What README and docs tell people to type exists: programs, flags, config files and fields; pages made from code are
current, and messages that are quoted are still in the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlagent_jax.config import check_field

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python (?:-m (?P<module>[\w.]+)|(?P<tool>(?:tools|launch)/[\w/]+\.py))(?P<rest>[^`#\n]*)")


def commands():
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for found in COMMAND.finditer(text):
            module = found["module"]
            if module is None or module.startswith(("mlagent_jax", "environments")):
                yield pytest.param(module, found["tool"], found["rest"], id=f"{page.name}: {found[0].strip()[:80]}")


def source(module, tool):
    if tool:
        return ROOT / tool
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def defined(path):
    """Names of the flags that a program defines."""
    names = {"help", "alsologtostderr", "v"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE"):
                names.update(texts[:1])
            names.update(text.lstrip("-") for text in texts if re.fullmatch(r"--[\w-]+", text))
    return names


@pytest.mark.parametrize(("module", "tool", "rest"), commands())
def test_a_command_names_a_program_flags_and_settings_that_exist(module, tool, rest):
    path = source(module, tool)
    assert path.is_file(), path
    flags = defined(path)
    for name, value in re.findall(r"(?<=\s)--([\w.-]+)(?:=(\S*))?", rest):
        if name.startswith("config."):
            check_field(name.removeprefix("config."))
        else:
            assert name in flags or name.removeprefix("no") in flags, f"--{name} is no flag of {path.name}"
        if name == "config" and value.startswith("configs/") and "<" not in value:
            assert (ROOT / value).is_file(), value


def launches():
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for found in re.finditer(r"^(?:\./)?(launch/\w+\.sh)([^#\n&]*)", text, re.MULTILINE):
            yield pytest.param(found[1], found[2], id=f"{page.name}: {found[0].strip()[:80]}")


@pytest.mark.parametrize(("program", "rest"), list(launches()))
def test_a_launcher_takes_the_options_that_are_named(program, rest):
    text = (ROOT / program).read_text(encoding="utf-8")
    options = set(re.findall(r"\[(\w+)\]=", text)) | {"dry_run", "help", "config"}
    for name, value in re.findall(r"(?<=\s)--([\w.]+)(?:=(\S*))?", rest):
        if name.startswith("config."):
            check_field(name.removeprefix("config."))
        else:
            assert name in options, f"--{name} is no option of {program}"
        if name == "config":
            assert (ROOT / value).is_file(), value


def test_messages_that_are_quoted_are_in_the_code():
    code = " ".join(
        path.read_text(encoding="utf-8")
        for room in ("mlagent_jax", "environments")
        for path in sorted((ROOT / room).rglob("*.py"))
    )
    # Literals that go on in the next line are one message.
    code = re.sub(r"\"\s*f?\"", "", code)
    quoted = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) >= 10
    assert [text for text in quoted if text not in code] == []


def test_the_config_reference_is_current():
    program = [sys.executable, "tools/config_reference.py", "--check"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
