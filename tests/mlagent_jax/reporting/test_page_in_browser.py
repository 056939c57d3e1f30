"""The report page in a real Chromium: it draws, filters, zooms, follows a trajectory, and runs nothing hostile."""

import needs
import pytest

from mlagent_jax.reporting import html, summary
from mlagent_jax.runtime import jsonl

from .chromium import PROGRAM, Browser
from .serving import add_step, served, waiting_for
from .test_html import HOSTILE, hostile_run

pytestmark = pytest.mark.slow
ROWS = "document.querySelectorAll('.list .row').length"


@pytest.fixture(scope="module")
def browser():
    needs.need(PROGRAM, "no Chromium: install it (Debian: apt-get install chromium)")
    with Browser() as browser:
        yield browser


@pytest.fixture
def show(browser, finished_run):
    """Writes the report of a run and opens it."""

    def write(workdir=None, **options):
        workdir = workdir or finished_run()
        html.write_report(workdir)
        browser.errors.clear()
        browser.open(workdir / "report" / "index.html", **options)
        return browser

    return write


def choose(browser, label, value):
    browser.run(
        f"""{{ const node = document.querySelector('select[aria-label="{label}"]'); node.value = {value!r};
        node.dispatchEvent(new Event("change")); }}"""
    )


def test_it_draws_every_section_without_an_error(show):
    page = show()
    assert page.run("document.querySelectorAll('.results tbody tr').length") == 7
    assert page.run("document.querySelectorAll('.tasks tbody tr').length") == 7
    assert page.run("document.querySelectorAll('.chart path.line').length") == 12
    assert page.run("[...document.querySelectorAll('.chart path.line')].every((p) => !/NaN/.test(p.getAttribute('d')))")
    assert page.run(ROWS) == 60
    assert page.run("document.querySelector('.detail .diff .add').textContent.startsWith('+')")
    assert page.errors == []


def test_a_run_that_has_only_begun_says_so(show, tmp_path):
    page = show(tmp_path)
    assert page.run("document.querySelectorAll('.note').length") >= 4
    assert page.errors == []


def test_filters_narrow_the_list_and_the_search_finds_text(show):
    page = show()
    choose(page, "sources", "rl")
    choose(page, "tasks", "wine")
    where = "[...document.querySelectorAll('.list .row')].map((row) => row.textContent)"
    found = page.run(where)
    assert found
    assert all("wine" in text and "RL, step" in text for text in found)
    choose(page, "outcomes", "script_error")
    assert all("script error" in text for text in page.run(where))
    page.run(
        """{ const node = document.querySelector('input[type=search]'); node.value = 'no such words';
        node.dispatchEvent(new Event('input')); }"""
    )
    assert page.run(ROWS) == 0
    assert page.run("document.querySelector('.count').textContent").startswith("0 of ")


def test_a_trajectory_can_be_followed_step_by_step(show):
    page = show()
    assert page.run("document.querySelectorAll('.tabs button').length") == 4
    page.run("document.querySelectorAll('.tabs button')[2].click()")
    assert page.run("document.querySelectorAll('.tabs button')[2].getAttribute('aria-pressed')") == "true"
    assert page.run("document.querySelectorAll('.step').length") == 1


def test_a_task_leads_to_its_trajectories(show):
    page = show()
    page.run("[...document.querySelectorAll('.tasks tbody a')].find((link) => link.textContent === 'digits').click()")
    assert set(page.run("[...document.querySelectorAll('.row-task')].map((node) => node.textContent)")) == {"digits"}


def test_dragging_zooms_all_charts_of_a_stage_and_hovering_reads_them(show):
    page = show()
    plot = "document.querySelector('.plot').getBoundingClientRect()"
    box = page.run(f"{{ const box = {plot}; [box.x, box.y + scrollY, box.width] }}")
    page.run(f"scrollTo(0, {box[1]} - 200)")
    y = page.run(f"{plot}.y") + 60
    points = [box[0] + share * box[2] for share in (0.4, 0.6)]
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=points[0], y=y)
    assert page.run("[...document.querySelectorAll('.stage')][0].querySelectorAll('.readout .at').length") == 4
    mouse = {"y": y, "button": "left", "buttons": 1, "clickCount": 1}
    page.call("Input.dispatchMouseEvent", type="mousePressed", x=points[0], **mouse)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=points[1], **mouse)
    page.call("Input.dispatchMouseEvent", type="mouseReleased", x=points[1], **mouse)
    resets = "[...document.querySelectorAll('.reset')].map((button) => button.hidden)"
    assert page.run(resets) == [False, True]
    page.run("document.querySelector('.reset').click()")
    assert page.run(resets) == [True, True]
    assert page.errors == []


def test_hostile_text_is_shown_as_it_is_and_never_interpreted(show, finished_run):
    page = show(hostile_run(finished_run()))
    assert page.run("document.title") != "owned"
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    shown = page.run("document.querySelector('.detail .code').textContent")
    assert shown == HOSTILE
    assert page.errors == []


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_follow_the_system_and_the_button(show, dark):
    page = show(dark=dark)
    background = "getComputedStyle(document.body).backgroundColor"
    first = page.run(background)
    assert (first == "rgb(255, 255, 255)") is not dark
    page.run("document.getElementById('theme').click()")
    assert page.run(background) != first
    page.run("document.getElementById('theme').click()")
    assert page.run(background) == first
    page.run("localStorage.clear()")


def test_at_phone_width_nothing_runs_over_and_a_trajectory_opens_and_closes(show):
    page = show(width=390, height=844)
    assert page.run("document.documentElement.scrollWidth") <= 390
    visible = "getComputedStyle(document.querySelector('.detail')).display"
    assert page.run(visible) == "none"
    page.run("document.querySelectorAll('.list .row')[1].click()")
    assert page.run(visible) == "block"
    assert page.run("document.documentElement.scrollWidth") <= 390
    page.run("document.querySelector('.back').click()")
    assert page.run(visible) == "none"
    assert page.errors == []


def test_a_curve_that_jumps_or_stays_or_has_one_point_is_drawn(show, finished_run):
    workdir = finished_run(policies=())
    records = [
        {"stage": "rl", "step": step, "seconds": 1.0, "flat": 0.0, "jump": 1e12 * (step == 2)} for step in range(1, 4)
    ]
    jsonl.replace(workdir / "metrics.jsonl", [*records, {"stage": "sft", "step": 1, "seconds": 0.0, "loss": 2.0}])
    page = show(workdir)
    paths = page.run("[...document.querySelectorAll('.chart path.line')].map((path) => path.getAttribute('d'))")
    assert len(paths) == 3
    assert not any("NaN" in path or "Infinity" in path for path in paths)
    assert page.errors == []


def test_several_runs_are_compared_on_one_page(show, finished_run):
    workdirs = [finished_run("first"), finished_run("second", seed=1)]
    pooled = summary.pool_summaries(workdirs)
    page = show(workdirs[0])
    page.open(html.write_comparison(workdirs, pooled))
    headers = page.run("[...document.querySelectorAll('.results thead th.number')].map((cell) => cell.textContent)")
    assert headers == ["first", "second", "Pooled"]
    first = page.run("document.querySelectorAll('.chart')[0].querySelectorAll('path.line').length")
    assert first == 2
    page.run("document.querySelector('.legend button').click()")
    assert page.run("document.querySelectorAll('.chart')[0].querySelectorAll('path.line').length") == 1
    choose(page, "runs", "second")
    assert page.run(ROWS) > 0
    assert "config" not in page.run("document.querySelector('.differing').textContent")
    assert "seed" in page.run("document.querySelector('.differing').textContent")
    page.open(workdirs[0] / "report" / "comparison.html", width=390, height=844)
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.errors == []


def test_states_and_workers_are_shown_and_lead_to_trajectories(show, live_run):
    page = show(live_run)
    assert page.run("document.querySelectorAll('.matrix .square').length") == 2
    assert page.run("document.querySelector('.matrix .square').textContent") == "0.50"
    assert "drawn so far, of which the policy itself reached 1" in page.run(
        "document.querySelector('#states').textContent"
    )
    tiles = page.run("[...document.querySelectorAll('.tile-value')].map((tile) => tile.textContent)")
    assert tiles[:2] == ["1", "0"]
    assert "[object" not in page.run("document.body.textContent.replace(/\\{.*/s, '')")
    assert page.run("document.querySelector('.chips .going').textContent") == "RL"
    assert "3 of 8" in page.run("document.querySelector('.told').textContent")
    lanes = page.run(
        "[...document.querySelectorAll('#time .lane-name, #time .lane-time')].map((node) => node.textContent)"
    )
    assert lanes == ["Sampling", "1.5 s", "Waiting", "2.5 s", "Update", "1 s"]
    assert page.run("document.querySelector('#time .bound').textContent").startswith("Waiting for executions takes 50%")
    page.run("document.querySelector('#time .segmented button').click()")
    assert page.run("document.querySelector('#time .note').textContent") == "Iteration 1: 5 s from left to right."
    task = page.run("{ const link = document.querySelector('#states .matrix th a'); link.click(); link.textContent }")
    assert set(page.run("[...document.querySelectorAll('.row-task')].map((node) => node.textContent)")) == {task}
    assert page.errors == []


def test_a_served_page_takes_up_what_is_new_and_keeps_what_was_chosen(browser, live_run):
    with served(live_run) as address:
        browser.errors.clear()
        browser.open_url(address)
        choose(browser, "tasks", "wine")
        before = browser.run(ROWS)
        add_step(live_run, step=4)
        browser.run(waiting_for(f"{ROWS} === {before + 1}"))
        assert browser.run("document.querySelector('select[aria-label=\"tasks\"]').value") == "wine"
        assert browser.run("document.querySelector('#live').textContent") == "Live"
        assert browser.errors == []
