"""Which tokens have to be computed at all: those that are alike in all that comes before them, once.

Rows that begin alike share their beginning, in a trie whose tokens are numbered. The *trunk* is what all
cells have in common: the rows under no operation. A cell's *branch* holds only the tokens from its first
changed position on, and only from its first changed layer on; before both, it is the trunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from ...interventions import Edit
from ...positions import Positions, PromptTokens

NOWHERE = -1  # what a first token comes behind


@dataclass(frozen=True)
class Row:
    """Tokens to run: a prompt, and whatever is fed behind it."""

    ids: tuple[int, ...]
    prompt: PromptTokens

    def selected(self, positions: Positions) -> Bool[np.ndarray, " pos"]:
        """Which of the tokens are selected; those behind the prompt are generated ones."""
        chosen = np.full(len(self.ids), positions.generated)
        chosen[: self.prompt.length] = positions.select(self.prompt).numpy()
        return chosen


@dataclass(frozen=True)
class Segment:
    """Tokens in a row without a fork, numbers `start` to `stop`, and all that they can look back on.

    Attributes:
        trunk: numbers of the trunk's tokens before it.
        own: numbers of its branch's tokens before it, counted like `start` within the branch.
    """

    start: int
    stop: int
    trunk: Int[np.ndarray, " before"]
    own: Int[np.ndarray, " between"]

    def before(self, base: int) -> Int[np.ndarray, " context"]:
        """Numbers in the whole plan of all tokens before it, where its branch begins at `base`."""
        return np.concatenate([self.trunk, self.own + base])


@dataclass(frozen=True)
class Growth:
    """A trie of tokens, numbered from 0 so that every token comes behind those it looks back on.

    Attributes:
        tokens, index: each token's id, and its absolute position in its prompt.
        selected: for each position that edits name, which tokens it selects.
        segments: the trie's stretches without a fork, in order.
        starts: for each row, from which position on its tokens are in this trie.
        paths: for each row, the numbers of these tokens.
        source: for each token, the trunk's token of the same place, where this is not the trunk.
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
    def seen(self) -> int:
        """How many pairs there are of a token and one that lies in its segment or before."""
        counts = ((each.stop - each.start, len(each.trunk) + len(each.own)) for each in self.segments)
        return sum(count * (count + before) for count, before in counts)


@dataclass(frozen=True)
class Branch:
    """A growth as one cell's: it joins the pass before layer `born`, numbered from `base`."""

    cell: int
    growth: Growth
    born: int
    base: int

    @property
    def stop(self) -> int:
        """The number behind its last token."""
        return self.base + len(self.growth)


class Plan:
    """Every token that rows under cells need, numbered: the trunk, then the branches by the layer they join.

    Of a single cell nothing can be shared with others: its edits are the trunk's.

    Args:
        rows: what is run in every cell.
        cells: the edits of each.
    """

    def __init__(self, rows: Sequence[Row], cells: Sequence[Sequence[Edit]]) -> None:
        self.rows, self.cells = rows, cells
        self._chosen: dict[tuple[int, Positions], np.ndarray] = {}
        self._grown: dict[tuple[Positions, ...], Growth] = {}
        alone = len(cells) == 1
        self.trunk = Branch(0 if alone else NOWHERE, self._trunk(cells[0] if alone else ()), 0, 0)
        self.branches: list[Branch] = []
        base = len(self.trunk.growth)
        for born, cell in (
            () if alone else sorted((first_layer(edits), cell) for cell, edits in enumerate(cells))
        ):
            growth = self._branch(cells[cell])
            self.branches.append(Branch(cell, growth, born, base))
            base += len(growth)
        self.size = base

    @property
    def all(self) -> list[Branch]:
        """The trunk, and the branches."""
        return [self.trunk, *self.branches]

    def path(self, cell: int, row: int, *, layer: int | None = None) -> Int[np.ndarray, " pos"]:
        """The numbers of a row's tokens in a cell: as its last layers see them, or as the given one does."""
        whole = self.trunk.growth.paths[row]
        branch = self._branch_of.get(cell)
        if branch is None or (layer is not None and layer < branch.born):
            return whole
        start = branch.growth.starts[row]
        return np.concatenate([whole[:start], branch.growth.paths[row] + branch.base])

    def source(self, numbers: Int[np.ndarray, " token"], layer: int) -> Int[np.ndarray, " fewer"]:
        """The tokens' numbers, in order; the trunk's where their branch joins only at this layer or later."""
        found = [numbers[numbers < len(self.trunk.growth)]]
        for branch in self.branches:
            mine = numbers[(numbers >= branch.base) & (numbers < branch.stop)]
            found.append(mine if branch.born < layer else branch.growth.source[mine - branch.base])
        return np.unique(np.concatenate(found))

    @cached_property
    def _branch_of(self) -> dict[int, Branch]:
        return {branch.cell: branch for branch in self.branches}

    def _selected(self, row: int, positions: Positions) -> Bool[np.ndarray, " pos"]:
        if (row, positions) not in self._chosen:
            self._chosen[row, positions] = self.rows[row].selected(positions)
        return self._chosen[row, positions]

    def _trunk(self, edits: Sequence[Edit]) -> Growth:
        return self._grow(_named(edits), [0] * len(self.rows), None)

    def _branch(self, edits: Sequence[Edit]) -> Growth:
        named = _named(edits)
        if named not in self._grown:
            starts = [
                min((_first(self._selected(row, positions)) for positions in named), default=len(asked.ids))
                for row, asked in enumerate(self.rows)
            ]
            self._grown[named] = self._grow(named, starts, self.trunk.growth.paths)
        return self._grown[named]

    def _grow(
        self, named: tuple[Positions, ...], starts: Sequence[int], trunk: Sequence[np.ndarray] | None
    ) -> Growth:
        def flags(row: int) -> list[bytes]:
            chosen = [self._selected(row, positions) for positions in named]
            return (
                [column.tobytes() for column in np.stack(chosen, 1)]
                if chosen
                else [b""] * len(self.rows[row].ids)
            )

        return grown([row.ids for row in self.rows], flags, starts, trunk, named)


def require_some(rows: Sequence[Row], cells: Sequence[Sequence[Edit]], *, generating: bool) -> None:
    """Raise `EmptySelectionError` for an edit whose positions select nothing of a row.

    Args:
        generating: whether tokens will be fed back behind the rows.
    """
    first_of: dict[Positions, Edit] = {}
    for edit in (edit for edits in cells for edit in edits):
        first_of.setdefault(edit.positions, edit)
    for positions, edit in first_of.items():
        for number, row in enumerate(rows):
            fed = generating or len(row.ids) > row.prompt.length
            positions.require_some(row.prompt, f"{edit.described}: row {number}", generating=fed)


def first_layer(edits: Sequence[Edit]) -> int:
    """The first layer whose input, or inside, these edits change."""
    return min((edit.layer + (edit.hook == "resid_post") for edit in edits), default=0)


def grown(
    rows: Sequence[Sequence[int]],
    flags: Callable[[int], list[bytes]],
    starts: Sequence[int],
    trunk: Sequence[Int[np.ndarray, " _"]] | None,
    named: tuple[Positions, ...],
) -> Growth:
    """The trie of the rows from `starts` on; tokens are alike where id, flags and all before are."""
    ids: list[int] = []
    index: list[int] = []
    marks: list[bytes] = []
    source: list[int] = []
    children: list[dict] = []
    tops: dict[
        int, tuple[int, dict]
    ] = {}  # by the trunk's token they come behind: a row of it, and the first tokens
    paths = []
    for number, row in enumerate(rows):
        start, marked = starts[number], flags(number)
        behind = int(trunk[number][start - 1]) if start else NOWHERE
        level = tops.setdefault(behind, (number, {}))[1] if start < len(row) else {}
        path = []
        for place in range(start, len(row)):
            key = row[place], marked[place]
            if key not in level:
                level[key] = len(ids)
                ids.append(row[place])
                index.append(place)
                marks.append(marked[place])
                source.append(NOWHERE if trunk is None else int(trunk[number][place]))
                children.append({})
            path.append(level[key])
            level = children[level[key]]
        paths.append(np.array(path, dtype=np.int64))
    order, segments = _numbered(tops, children, starts, trunk)
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.arange(len(order))
    flagged = np.array([list(mark) for mark in marks], dtype=bool).reshape(len(ids), len(named))[order]
    return Growth(
        tokens=np.array(ids, dtype=np.int64)[order],
        index=np.array(index, dtype=np.int64)[order],
        selected={positions: flagged[:, place] for place, positions in enumerate(named)},
        segments=tuple(segments),
        starts=tuple(starts),
        paths=tuple(numbers[path] for path in paths),
        source=np.array(source, dtype=np.int64)[order],
    )


def _numbered(
    tops: dict[int, tuple[int, dict]],
    children: list[dict],
    starts: Sequence[int],
    trunk: Sequence[np.ndarray] | None,
) -> tuple[np.ndarray, list[Segment]]:
    """Nodes in an order in which each stretch without a fork lies together, behind what it comes behind."""
    order: list[int] = []
    segments: list[Segment] = []
    nothing = np.empty(0, dtype=np.int64)
    for row, firsts in tops.values():
        before = nothing if trunk is None else trunk[row][: starts[row]]
        waiting = [(node, nothing) for node in reversed(firsts.values())]
        while waiting:
            node, own = waiting.pop()
            start = len(order)
            order.append(node)
            while len(children[node]) == 1:
                (node,) = children[node].values()
                order.append(node)
            segments.append(Segment(start, len(order), before, own))
            if children[node]:
                reach = np.concatenate([own, np.arange(start, len(order))])
                waiting += [(child, reach) for child in reversed(children[node].values())]
    return np.array(order, dtype=np.int64), segments


def _named(edits: Sequence[Edit]) -> tuple[Positions, ...]:
    return tuple(dict.fromkeys(edit.positions for edit in edits))


def _first(selected: Bool[np.ndarray, " pos"]) -> int:
    return int(selected.argmax()) if selected.any() else len(selected)
