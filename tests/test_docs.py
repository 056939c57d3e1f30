"""Pages made from code are current, messages that are quoted are still in the code, links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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


def headings(page):
    """Anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target, _, anchor in re.findall(r"\]\(([^)#:]*)(#([^)]*))?\)", page.read_text(encoding="utf-8")):
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in headings(there), f"{page.name}: {target}#{anchor}"


def test_files_that_pages_name_exist():
    named = r"`((?:mlagent_jax|environments|tests|tools|configs|launch|docs)/[\w./-]+)`"
    missing = [
        f"{page.name}: {path}"
        for page in PAGES
        for path in re.findall(named, page.read_text(encoding="utf-8"))
        if not (ROOT / path).exists()
    ]
    assert missing == []
