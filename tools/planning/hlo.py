"""What a compiled program consists of, read from its optimised HLO: collectives, and the largest arrays.

A loop's body stands in the text once, and counts here as often as it runs: XLA writes that beside the loop
(`known_trip_count`), or, on TPU, only as the number that the loop's condition compares its counter with.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "pred": 1, "s8": 1, "u8": 1}
_ITEM_BYTES |= {"f64": 8, "s64": 8, "u64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 0.5, "u4": 0.5}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?[\])}]) ([\w\-]+)\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_CALLED_LIST = re.compile(r"(?:called_computations|branch_computations|calls)=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_BOUND = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_NO_ARRAY = (
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "while",
    "conditional",
    "call",
    "optimization-barrier",
)
"""Instructions that name an array which stands somewhere already."""


@dataclasses.dataclass(frozen=True)
class Array:
    """What an instruction makes on one device."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Without the padding of a device's layout."""
        return int(math.prod(self.shape) * _ITEM_BYTES.get(self.dtype, 4))

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the text."""

    kind: str
    arrays: tuple[Array, ...]
    """Its results."""
    times: int
    """How often it runs."""
    channel: str = ""
    """Of a collective: the same in all pieces that the compiler cuts one into."""
    fused: bool = False
    """Inside a fusion, where nothing but a collective leaves an array in memory."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind."""

    kind: str
    count: int
    """As often as they run."""
    bytes: int
    """Of their results on one device."""


Lines = dict[str, list[tuple[str, str, str]]]  # computation -> (kind, result's shapes, whole line)


def instructions(text: str) -> list[Instruction]:
    """All that make arrays, of the entry and what it calls, and the collectives inside of fusions."""
    computations: Lines = {}
    entry, current = "", ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            if match := _COMPUTATION.match(line):
                current = match[1]
                computations[current] = []
                entry = current if line.startswith("ENTRY") else entry
            continue
        if current and (match := _INSTRUCTION.match(line)):
            computations[current].append((match[3], match[2], line))
    times: collections.Counter[tuple[str, bool]] = collections.Counter()
    _visit(computations, entry, 1, False, times)
    found = []
    for (name, fused), runs in times.items():
        for kind, shapes, line in computations.get(name, ()):
            if kind not in _NO_ARRAY and (not fused or kind.removesuffix("-start") in COLLECTIVES):
                channel = _CHANNEL.search(line)
                found.append(Instruction(kind, _arrays(shapes), runs, channel[1] if channel else "", fused))
    return found


def _visit(
    computations: Lines, name: str, runs: int, fused: bool, times: collections.Counter[tuple[str, bool]]
) -> None:
    times[name, fused] += runs
    for kind, _, line in computations.get(name, ()):
        called = set(_CALLED.findall(line))
        called |= {part.strip().lstrip("%") for names in _CALLED_LIST.findall(line) for part in names.split(",")}
        again = runs * _trips(computations, line) if kind == "while" else runs
        for each in called:
            _visit(computations, each, again, fused or kind == "fusion", times)


def _trips(computations: Lines, loop: str) -> int:
    """How often a loop runs; 1 where the text does not say."""
    if match := _TRIPS.search(loop):
        return int(match[1])
    condition = _CONDITION.search(loop)
    lines = computations.get(condition[1], ()) if condition else ()
    return max((int(bound[1]) for *_, line in lines if (bound := _BOUND.search(line))), default=1)


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(size) for size in shape.split(",") if size))
        for dtype, shape in _SHAPE.findall(text)
        if dtype in _ITEM_BYTES
    )


def collectives(found: list[Instruction]) -> list[Collective]:
    """By kind; an asynchronous one counts where it starts, one in pieces once."""
    whole: dict[tuple[str, str], Instruction] = {}
    for index, each in enumerate(found):
        kind = each.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            key = (kind, each.channel or f"#{index}")
            if key not in whole or whole[key].times < each.times:
                whole[key] = each
    counts: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()
    for (kind, _), each in whole.items():
        counts[kind] += each.times
        sizes[kind] += each.times * result(each).bytes
    return [Collective(kind, counts[kind], sizes[kind]) for kind in COLLECTIVES if counts[kind]]


def result(collective: Instruction) -> Array:
    """What a collective makes; the start of an asynchronous one names its operand first."""
    arrays = [array for array in collective.arrays if array.shape] or list(collective.arrays)
    return max(arrays, key=lambda array: array.bytes)


def largest(found: list[Instruction]) -> Array:
    """The largest array that any instruction makes."""
    return max((array for each in found if not each.fused for array in each.arrays), key=lambda array: array.bytes)


def gathers_of(found: list[Instruction], stacked: set[tuple[int, ...]]) -> list[Array]:
    """Results of all-gathers that are one of the `stacked` shapes, in any order of dimensions."""
    forbidden = {_plain(shape) for shape in stacked}
    gathers = [result(each) for each in found if each.kind.removesuffix("-start") == "all-gather"]
    return [array for array in gathers if _plain(array.shape) in forbidden]


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size != 1))


def with_vocabulary(found: list[Instruction], positions: int, vocab: int, hidden: int) -> list[Array]:
    """Arrays of a vocabulary for each of at least so many positions; the matrix between it and `hidden` states is none,
    which may be larger than the logits of a short part of a prompt."""
    arrays = {array for each in found if not each.fused for array in each.arrays}
    large = [a for a in arrays if vocab in a.shape and math.prod(a.shape) >= positions * vocab]
    matrix = [] if positions == hidden else sorted((vocab, hidden))
    return [a for a in large if sorted(size for size in a.shape if size > 1) != matrix]
