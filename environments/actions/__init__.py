"""The agent's actions: strict parsing, checked file access, and clean observations.

    reply --parse--> Action --apply--> Effect --(sandbox)--> observation

`vocabulary` holds the actions as data, `assisted` those that need a second model. `profiles` holds the prompt text made
from them, `grammar` the parser, `edits` the edits as pure functions of a script's text, `files` the agent's access
to files, `observation` the text shown to the agent.
"""

from environments.actions.assisted import ASSISTED_ACTIONS
from environments.actions.errors import ActionError
from environments.actions.files import AgentFiles
from environments.actions.grammar import STOP, Action, fenced, parse
from environments.actions.profiles import LABELS, PROFILES, Profile, describe_actions, describe_format, profile
from environments.actions.vocabulary import ACTIONS, ActionSpec, Argument, Effect

__all__ = [
    "ACTIONS",
    "ASSISTED_ACTIONS",
    "LABELS",
    "PROFILES",
    "STOP",
    "Action",
    "ActionError",
    "ActionSpec",
    "AgentFiles",
    "Argument",
    "Effect",
    "Profile",
    "describe_actions",
    "describe_format",
    "fenced",
    "parse",
    "profile",
]
