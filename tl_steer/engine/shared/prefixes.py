"""The tokens that have to be computed: those that are equal in everything before them, once.

Rows that begin alike share their beginning, in a trie whose tokens are numbered. The *shared prefix* is
what all conditions have in common: the rows without operations. The *delta* of a condition has only the
tokens from its first steered position on, from its first steered layer on; before both, the shared prefix
is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from ...interventions import Edit
from ...positions import Positions
from ..plain import Row

NONE = -1  # no condition, or no token before


@dataclass(frozen=True)
class Segment:
    """A run of tokens without a fork, numbers `start` to `stop`, and the tokens before it.

    Attributes:
        prefix: numbers of tokens of the shared prefix before it.
        own: numbers of tokens of its delta before it, counted like `start` within the delta.
    """

    start: int
    stop: int
    prefix: Int[np.ndarray, " before"]
    own: Int[np.ndarray, " between"]

    def context(self, base: int) -> Int[np.ndarray, " context"]:
        """Numbers in the plan of all tokens before it, if its delta is numbered from `base`."""
        return np.concatenate([self.prefix, self.own + base])


@dataclass(frozen=True)
class Trie:
    """Tokens of rows, numbered from 0, each after the tokens before it.

    Attributes:
        tokens, index: each token's id, and its absolute position in its prompt.
        selected: for each `Positions` of an edit, which tokens it selects.
        segments: the runs without a fork, in order.
        starts: per row, the first position whose token is in this trie.
        paths: per row, the numbers of its tokens.
        source: per token of a delta, the token of the shared prefix at the same position.
    """

    tokens: Int[np.ndarray, " token"]
    index: Int[np.ndarray, " token"]
    selected: dict[Positions, Bool[np.ndarray, " token"]]
    segments: tuple[Segment, ...]
    starts: tuple[int, ...]
    paths: tuple[Int[np.ndarray, " _"], ...]
    source: Int[np.ndarray, " token"]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def n_masked(self) -> int:
        """How many entries attention masks have: each token with those before it and in its segment."""
        counts = ((each.stop - each.start, len(each.prefix) + len(each.own)) for each in self.segments)
        return sum(count * (count + before) for count, before in counts)


@dataclass(frozen=True)
class Delta:
    """The trie of one condition, which joins before `start_layer`; its tokens are numbered from `base`."""

    condition: int
    trie: Trie
    start_layer: int
    base: int

    @property
    def stop(self) -> int:
        """The number after its last token."""
        return self.base + len(self.trie)


class Plan:
    """All tokens of rows under conditions, numbered: the shared prefix, then deltas by start layer.

    A single condition has nothing to share with others: its edits apply to the shared prefix.

    Args:
        rows: run under every condition.
        conditions: the edits of each.
    """

    def __init__(self, rows: Sequence[Row], conditions: Sequence[Sequence[Edit]]) -> None:
        self.rows, self.conditions = rows, conditions
        self._selected_by: dict[tuple[int, Positions], np.ndarray] = {}
        self._tries: dict[tuple[Positions, ...], Trie] = {}
        is_single = len(conditions) == 1
        trie = self._trie(_positions(conditions[0] if is_single else ()), [0] * len(rows), None)
        self.prefix = Delta(0 if is_single else NONE, trie, 0, 0)
        self.deltas: list[Delta] = []
        base = len(trie)
        layers = [] if is_single else sorted((first_layer(edits), i) for i, edits in enumerate(conditions))
        for start_layer, condition in layers:
            trie = self._delta_trie(_positions(conditions[condition]))
            self.deltas.append(Delta(condition, trie, start_layer, base))
            base += len(trie)
        self.size = base

    @property
    def parts(self) -> list[Delta]:
        """The shared prefix, then the deltas."""
        return [self.prefix, *self.deltas]

    def path(self, condition: int, row: int, *, layer: int | None = None) -> Int[np.ndarray, " pos"]:
        """The numbers of a row's tokens in a condition: at `layer`, or in the last layers."""
        path = self.prefix.trie.paths[row]
        delta = self._delta_of.get(condition)
        if delta is None or (layer is not None and layer < delta.start_layer):
            return path
        return np.concatenate([path[: delta.trie.starts[row]], delta.trie.paths[row] + delta.base])

    def steered_from(self, condition: int, n_layers: int) -> int:
        """The first layer that a condition changes, or whose input it changes; none if unsteered."""
        if not self._delta_of:
            return 0
        return first_layer(self.conditions[condition]) if self.conditions[condition] else n_layers + 1

    def source(self, numbers: Int[np.ndarray, " token"], layer: int) -> Int[np.ndarray, " fewer"]:
        """The tokens to run before `layer`, sorted: those of the prefix where a delta joins only then."""
        sources = [numbers[numbers < len(self.prefix.trie)]]
        for delta in self.deltas:
            own = numbers[(numbers >= delta.base) & (numbers < delta.stop)]
            sources.append(own if delta.start_layer < layer else delta.trie.source[own - delta.base])
        return np.unique(np.concatenate(sources))

    @cached_property
    def _delta_of(self) -> dict[int, Delta]:
        return {delta.condition: delta for delta in self.deltas}

    def _selected(self, row: int, positions: Positions) -> Bool[np.ndarray, " pos"]:
        if (row, positions) not in self._selected_by:
            self._selected_by[row, positions] = self.rows[row].selected(positions)
        return self._selected_by[row, positions]

    def _delta_trie(self, positions: tuple[Positions, ...]) -> Trie:
        """Of the tokens from the first selected one on; conditions with equal positions share a trie."""
        if positions not in self._tries:
            starts = [
                min(
                    (_first(self._selected(row, each)) for each in positions), default=len(self.rows[row].ids)
                )
                for row in range(len(self.rows))
            ]
            self._tries[positions] = self._trie(positions, starts, self.prefix.trie.paths)
        return self._tries[positions]

    def _trie(
        self, positions: tuple[Positions, ...], starts: Sequence[int], prefix: Sequence[np.ndarray] | None
    ) -> Trie:
        def flags(row: int) -> list[bytes]:
            if not positions:
                return [b""] * len(self.rows[row].ids)
            selected = np.stack([self._selected(row, each) for each in positions], 1)
            return [column.tobytes() for column in selected]

        return build_trie([row.ids for row in self.rows], flags, starts, prefix, positions)


def first_layer(edits: Sequence[Edit]) -> int:
    """The first layer whose input or inside these edits change."""
    return min((edit.layer + (edit.hook == "resid_post") for edit in edits), default=0)


def build_trie(
    rows: Sequence[Sequence[int]],
    flags: Callable[[int], list[bytes]],
    starts: Sequence[int],
    prefix: Sequence[Int[np.ndarray, " _"]] | None,
    positions: tuple[Positions, ...],
) -> Trie:
    """The trie of the rows from `starts` on; tokens are equal if id, flags and everything before are."""
    ids: list[int] = []
    index: list[int] = []
    marks: list[bytes] = []
    source: list[int] = []
    children: list[dict] = []
    # Keyed by the token of the shared prefix before them: a row with it, and the first tokens after it.
    roots: dict[int, tuple[int, dict]] = {}
    paths = []
    for number, row in enumerate(rows):
        start, marked = starts[number], flags(number)
        before = int(prefix[number][start - 1]) if start else NONE
        level = roots.setdefault(before, (number, {}))[1] if start < len(row) else {}
        path = []
        for position in range(start, len(row)):
            key = row[position], marked[position]
            if key not in level:
                level[key] = len(ids)
                ids.append(row[position])
                index.append(position)
                marks.append(marked[position])
                source.append(NONE if prefix is None else int(prefix[number][position]))
                children.append({})
            path.append(level[key])
            level = children[level[key]]
        paths.append(np.array(path, dtype=np.int64))
    order, segments = _segments(roots, children, starts, prefix)
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.arange(len(order))
    flagged = np.array([list(mark) for mark in marks], dtype=bool).reshape(len(ids), len(positions))[order]
    return Trie(
        tokens=np.array(ids, dtype=np.int64)[order],
        index=np.array(index, dtype=np.int64)[order],
        selected={each: flagged[:, column] for column, each in enumerate(positions)},
        segments=tuple(segments),
        starts=tuple(starts),
        paths=tuple(numbers[path] for path in paths),
        source=np.array(source, dtype=np.int64)[order],
    )


def _segments(
    roots: dict[int, tuple[int, dict]],
    children: list[dict],
    starts: Sequence[int],
    prefix: Sequence[np.ndarray] | None,
) -> tuple[np.ndarray, list[Segment]]:
    """Nodes in an order in which each run without a fork is contiguous and after its context."""
    order: list[int] = []
    segments: list[Segment] = []
    empty = np.empty(0, dtype=np.int64)
    for row, firsts in roots.values():
        before = empty if prefix is None else prefix[row][: starts[row]]
        stack = [(node, empty) for node in reversed(firsts.values())]
        while stack:
            node, own = stack.pop()
            start = len(order)
            order.append(node)
            while len(children[node]) == 1:
                (node,) = children[node].values()
                order.append(node)
            segments.append(Segment(start, len(order), before, own))
            if children[node]:
                context = np.concatenate([own, np.arange(start, len(order))])
                stack += [(child, context) for child in reversed(children[node].values())]
    return np.array(order, dtype=np.int64), segments


def _positions(edits: Sequence[Edit]) -> tuple[Positions, ...]:
    return tuple(dict.fromkeys(edit.positions for edit in edits))


def _first(selected: Bool[np.ndarray, " pos"]) -> int:
    return int(selected.argmax()) if selected.any() else len(selected)
