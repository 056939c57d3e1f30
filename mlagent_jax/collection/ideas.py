"""Ideas that enrich an expert's prompts: many candidates, without duplicates, the most diverse kept.

    candidates (the built-in library, or a language model) -> distinct -> vectors -> farthest-point selection

The selection is a function of the candidates and the seed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

import numpy as np
from etils import epath

from environments.tasks.generated.ideas import Idea, candidates_for
from environments.tasks.task import TaskSpec
from mlagent_jax.agents.endpoint import EndpointClient
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.files import write_whole
from mlagent_jax.settings.stages import IdeasConfig

IDEAS_PER_REQUEST = 20
"""Number of ideas that one request asks a language model for."""


def farthest_points(vectors: np.ndarray, count: int, first: int = 0) -> list[int]:
    """Return indices of `count` of `vectors` [n, dimensions], starting with `first`, each the farthest from all before
    it; all indices if there are at most `count`.

    Their covering radius (the largest distance of any vector to the nearest of them) is at most twice the optimum for
    `count` vectors (Gonzalez 1985, greedy k-centre). Ties go to the lower index.
    """
    chosen: list[int] = [first][: min(count, len(vectors))]
    nearest = np.full(len(vectors), np.inf)
    while 0 < len(chosen) < min(count, len(vectors)):
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[chosen[-1]], axis=1))
        nearest[chosen] = -1.0  # never choose an index twice, even among equal vectors
        chosen.append(int(np.argmax(nearest)))
    return chosen


def tfidf_vectors(texts: Sequence[str]) -> np.ndarray:
    """Return unit vectors [n, terms] of words and word pairs, weighted by their rarity among `texts`."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import: only when ideas are selected

    words = TfidfVectorizer(token_pattern=r"[A-Za-z]+|\d[\d.]*", ngram_range=(1, 2), sublinear_tf=True)  # noqa: S106 - a regex
    return words.fit_transform(texts).toarray()


def distinct(texts: Sequence[str]) -> list[int]:
    """Return indices of `texts` without duplicates, ignoring case, spaces and punctuation."""
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        if plain := " ".join(re.findall(r"[^\W_]+", text.casefold())):
            first.setdefault(plain, index)
    return list(first.values())


def select(
    texts: Sequence[str], keep: int, seed: str, config: IdeasConfig, client: EndpointClient | None = None
) -> list[int]:
    """Return indices of the `keep` most diverse of `texts`, without duplicates; the seed draws the first.

    Raises:
      ConfigError: The embedder is the endpoint's, and there is no endpoint.
    """
    indices = distinct(texts)
    if not indices:
        return []
    named = [texts[index] for index in indices]
    if config.embedder == "tfidf":
        vectors = tfidf_vectors(named)
    elif client is None:
        raise ConfigError("config.ideas.embedder is 'endpoint', and config.endpoint names none: set its url and model")
    else:
        vectors = np.asarray(client.embed(named, config.embedding_model), float)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    first = random.Random(f"{seed}/first idea").randrange(len(named))  # noqa: S311 - reproducible, not secret
    return [indices[place] for place in farthest_points(vectors, keep, first)]


def library_ideas(
    spec: TaskSpec, script: str, config: IdeasConfig, seed: str, client: EndpointClient | None = None
) -> tuple[Idea, ...]:
    """Return the `ideas.keep` most diverse candidates of the built-in library for a task. Code counts too, because the
    texts alone do not show which ideas make the same kind of edit."""
    candidates = candidates_for(spec, script)
    texts = [f"{idea.text}; {idea.cell}; {idea.code}" for idea in candidates]
    return tuple(candidates[index] for index in select(texts, config.keep, seed, config, client))


def endpoint_ideas(
    spec: TaskSpec, config: IdeasConfig, seed: str, client: EndpointClient, path: epath.Path
) -> list[str]:
    """Return the `ideas.keep` most diverse of `ideas.candidates` ideas of a language model for a task; store them with
    all candidates at `path`.

    Raises:
      ConfigError: The model gives too few distinct ideas.
      BudgetError, EndpointError: See `agents.endpoint`.
    """
    if path.exists():
        return json.loads(path.read_text())["kept"]
    candidates: list[str] = []
    # Answers hold fewer ideas than requested and repeat others: allow three times the minimum number of requests.
    for attempt in range(3 * -(-config.candidates // IDEAS_PER_REQUEST)):
        if len(candidates) >= config.candidates:
            break
        known = "".join(f"- {idea}\n" for idea in candidates[-60:])
        answer = client.chat([{"role": "user", "content": _question(spec, known)}], seed=attempt).text
        candidates += parse_ideas(answer)
        candidates = [candidates[index] for index in distinct(candidates)]
    if len(candidates) < config.candidates:
        raise ConfigError(
            f"config.ideas.candidates is {config.candidates}; {client.config.model} gave {len(candidates)} distinct "
            f"ideas for {spec.name}: ask for fewer, raise config.endpoint.max_tokens or temperature, or name another "
            "model"
        )
    kept = [candidates[index] for index in select(candidates, config.keep, seed, config, client)]
    write_whole(path, json.dumps({"task": spec.name, "kept": kept, "candidates": candidates}, indent=1))
    return kept


def parse_ideas(answer: str) -> list[str]:
    """Return the ideas of an answer, one per line, without numbers and bullets; other lines are dropped."""
    lines = [
        re.sub(r"^\s*(?:[-*\u2022]|\d+[.):])\s*", "", line).strip().strip("*").strip() for line in answer.splitlines()
    ]
    bullets = [bool(re.match(r"\s*(?:[-*\u2022]|\d+[.):])\s*\S", line)) for line in answer.splitlines()]
    # If an answer has bullets, the other lines are introduction or comment.
    return [
        line[:300]
        for line, bullet in zip(lines, bullets, strict=True)
        if line and line[-1] != ":" and (bullet or not any(bullets))
    ]


def _question(spec: TaskSpec, known: str) -> str:
    direction = "higher" if spec.higher_is_better else "lower"
    asked = (
        f"A machine-learning script is to be improved.\n\nThe task: {spec.description.strip()}\n\n"
        f"The metric is {spec.metric}; {direction} is better.\n\n"
        f"List {IDEAS_PER_REQUEST} different ideas for improving the script, about data, features, model, training and "
        "predictions. One idea a line, starting with '- ', in at most 20 words, and nothing else."
    )
    return asked + (f"\n\nThese are known already; give others:\n{known}" if known else "")
