"""What a policy's edits are like, counted on a handful of recorded steps."""

from tools.edit_quality import quality

PATCH = "Action: Edit Script (Patch)\n```python\n<<<<<<< SEARCH\nm = 1\n=======\nm = SVC()\n>>>>>>> REPLACE\n```"


def step(kind, action=PATCH, diff="", applied=True, repairs=()):
    progress = ["parsed", *["applied"] * applied]
    return {"action": action, "outcome": {"kind": kind, "diff": diff, "progress": progress, "repairs": repairs}}


def test_shares_are_of_what_they_say():
    svc, forest = "+++ t\n+m = SVC()", "+++ t\n+m = Forest()"
    found = quality(
        [
            step("scored", diff=svc),
            step("scored", diff=forest, repairs=["thoughts"]),
            step("script_error", diff=forest),
            step("invalid_action", applied=False),
            step("no_edit", action="Action: Execute Script"),
            step("infrastructure_error"),
        ],
        known={"Forest"},
        distinct=[0.5, 1.0],
    )
    assert found == {
        "valid": 4 / 5,
        "repaired": 1 / 5,
        "quoting": 3 / 4,
        "patches": 4,
        "distinct": 0.75,
        "new API": 1 / 2,
    }
    assert quality([], set(), [])["valid"] == 0.0
