"""What is computed at all: a plan's trie against sets of plain tuples, and tokens counted in the blocks."""

import copy
import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tl_steer._capture import capture, capture_pairs
from tl_steer._generation import Decoding, generate, write_cells
from tl_steer._scoring import choice_logits, plan_choices, score_cells
from tl_steer.engine import CleanStreams, Plan, Row, in_waves
from tl_steer.engine.shared.decoding import Decoder
from tl_steer.engine.shared.prefixes import first_layer
from tl_steer.errors import EmptySelectionError
from tl_steer.interventions import Ablate, Add, ProjectOut
from tl_steer.interventions.operations import Edit
from tl_steer.positions import (
    Positions,
    PromptTokens,
    all_tokens,
    current_token,
    generated_tokens,
    last_token,
    token,
)
from tl_steer.prompts import ChoiceQuestions, contrast_pairs
from tl_steer.sweeps import chunks
from tl_steer.sweeps._sweep import sweep

from .tiny_model import N_LAYERS, favouring, made_vector, make_model, word_tokenizer

MODEL = make_model(word_tokenizer())


# The trie, against plain Python


@dataclass(frozen=True)
class Marks:
    """Positions that select by a rule on a token's id, its place and the prompt's length."""

    rest: int
    of: int
    of_the_end: bool
    generated: bool

    def chosen(self, ids, length):
        """Whether each of the ids is selected, of which so many are the prompt."""
        offset = length if self.of_the_end else 0
        inside = [(ids[place] + place + offset) % self.of == self.rest for place in range(length)]
        return inside + [self.generated] * (len(ids) - length)

    @property
    def positions(self):
        return Positions(
            str(self),
            self.generated,
            self.of_the_end,
            lambda prompt: torch.tensor(self.chosen(prompt.ids, prompt.length), dtype=torch.bool),
        )


MARKS = st.builds(Marks, st.integers(0, 3), st.integers(1, 4), st.booleans(), st.booleans())
# What is run, and how much of it is the prompt.
ROWS = st.lists(
    st.lists(st.integers(0, 1), min_size=1, max_size=6).flatmap(
        lambda ids: st.tuples(st.just(tuple(ids)), st.integers(1, len(ids)))
    ),
    min_size=1,
    max_size=8,
)
CELLS = st.lists(
    st.lists(
        st.tuples(MARKS, st.integers(0, 3), st.sampled_from(["resid_pre", "z", "resid_post"])), max_size=3
    ),
    min_size=1,
    max_size=4,
)


# Forks behind forks, in the trunk and in a branch; a row that is a beginning, one that is there twice.
FORKED = [((0, *rest), 3) for rest in ((0, 0), (0, 1), (1, 0, 0), (1, 0, 1), (1, 1), (1, 1))] + [((0, 1), 1)]
EVERY, LATE = Marks(0, 1, False, True), Marks(2, 4, False, True)


def in_any_plan(test):
    """Run a test for any rows and cells, and for those with forks behind forks."""
    for cells in (
        [[]],
        [[(EVERY, 1, "z")]],
        [[], [(EVERY, 0, "resid_post")], [(LATE, 0, "z"), (EVERY, 2, "z")]],
    ):
        test = example(rows=FORKED, cells=cells)(test)
    return settings(max_examples=80)(given(rows=ROWS, cells=CELLS)(test))


def edit(positions, layer=0, hook="resid_post"):
    return Edit(layer, hook, positions, lambda x, index: x, None, f"nothing at layer {layer}")


def planned(rows, cells):
    edits = [[edit(marks.positions, layer, hook) for marks, layer, hook in cell] for cell in cells]
    rows = [Row(ids, PromptTokens(length, ids[:length])) for ids, length in rows]
    return Plan(rows, edits)


def flags(cell, row):
    """What is selected at each token of a row, for all marks of a cell together."""
    ids, length = row
    return (
        list(zip(*(marks.chosen(ids, length) for marks, _, _ in cell), strict=True))
        if cell
        else [()] * len(ids)
    )


def first_changed(cell, row):
    return next((place for place, chosen in enumerate(flags(cell, row)) if any(chosen)), len(row[0]))


def beginnings(cell, row, start=0):
    """Each token from `start` on as all that it hangs on: the ids up to it, and what is selected there."""
    ids, chosen = row[0], flags(cell, row)
    return [(ids[: place + 1], tuple(chosen[: place + 1])) for place in range(start, len(ids))]


def born(cell):
    return min((layer + (hook == "resid_post") for _, layer, hook in cell), default=0)


def numbered(plan):
    """Ids and places of all the plan's tokens, by number."""
    return [
        np.concatenate([getattr(branch.growth, name) for branch in plan.all]) for name in ("tokens", "index")
    ]


@in_any_plan
def test_a_path_gives_back_ids_and_places_of_its_row(rows, cells):
    plan = planned(rows, cells)
    tokens, index = numbered(plan)
    assert len(tokens) == plan.size
    for (cell, edits), (row, (ids, _)) in itertools.product(enumerate(cells), enumerate(rows)):
        for layer in (None, *range(5)):
            path = plan.path(cell, row, layer=layer)
            assert tuple(tokens[path]) == ids
            assert index[path].tolist() == list(range(len(ids)))
            alone = len(cells) == 1
            clean = not alone and layer is not None and layer < born(edits)
            changed = len(ids) if alone or clean else first_changed(edits, rows[row])
            assert path[:changed].tolist() == plan.trunk.growth.paths[row][:changed].tolist()
            assert (path[changed:] >= len(plan.trunk.growth)).all()


@in_any_plan
def test_a_token_is_there_once_for_all_rows_that_begin_alike(rows, cells):
    """The trunk: every beginning. A branch: every beginning and what is selected in it, from a change on."""
    plan = planned(rows, cells)
    own = cells[0] if len(cells) == 1 else []
    assert len(plan.trunk.growth) == len({each for row in rows for each in beginnings(own, row)})
    if len(cells) == 1:
        assert plan.branches == []
        return
    assert sorted(branch.cell for branch in plan.branches) == list(range(len(cells)))
    for branch in plan.branches:
        cell = cells[branch.cell]
        needed = {each for row in rows for each in beginnings(cell, row, first_changed(cell, row))}
        assert len(branch.growth) == len(needed)
        assert branch.growth.starts == tuple(first_changed(cell, row) for row in rows)


@in_any_plan
def test_two_tokens_are_one_exactly_where_all_before_them_is_alike(rows, cells):
    plan = planned(rows, cells)
    for cell, edits in enumerate(cells):
        means = {}
        for row, asked in enumerate(rows):
            for number, beginning in zip(plan.path(cell, row), beginnings(edits, asked), strict=True):
                assert means.setdefault(number, beginning) == beginning
        assert len(set(means.values())) == len(means)


@in_any_plan
def test_the_context_of_a_segment_is_what_its_rows_begin_with(rows, cells):
    plan = planned(rows, cells)
    contexts = {}
    for branch in plan.all:
        numbers = []
        for segment in branch.growth.segments:
            here = range(branch.base + segment.start, branch.base + segment.stop)
            numbers += here
            before = segment.before(branch.base).tolist()
            contexts |= {number: before + list(here[:place]) for place, number in enumerate(here)}
        assert numbers == list(range(branch.base, branch.stop))
    assert sorted(contexts) == list(range(plan.size))
    for cell, row in itertools.product(range(len(cells)), range(len(rows))):
        for layer in (None, -1):
            path = plan.path(cell, row, layer=layer).tolist()
            for place, number in enumerate(path):
                assert contexts[number] == path[:place]
                assert max(path[:place], default=-1) < number


@in_any_plan
def test_a_segment_has_no_fork_and_ends_at_one(rows, cells):
    plan = planned(rows, cells)
    for branch in plan.all:
        ends = {segment.stop for segment in branch.growth.segments}
        behind = {number: set() for number in range(len(branch.growth))}
        for path in branch.growth.paths:
            for here, following in itertools.pairwise(path.tolist()):
                behind[here].add(following)
        for number, others in behind.items():
            assert (len(others) == 1) == (number + 1 not in ends)


@in_any_plan
def test_a_branch_knows_where_it_comes_from_and_what_is_selected(rows, cells):
    plan = planned(rows, cells)
    trunk = plan.trunk.growth
    for branch in plan.branches:
        cell = cells[branch.cell]
        for row, (path, start) in enumerate(zip(branch.growth.paths, branch.growth.starts, strict=True)):
            assert branch.growth.source[path].tolist() == trunk.paths[row][start:].tolist()
    for branch in plan.branches or [plan.trunk]:
        cell = cells[branch.cell]
        for marks, _, _ in cell:
            found = branch.growth.selected[marks.positions]
            for row, (path, start) in enumerate(zip(branch.growth.paths, branch.growth.starts, strict=True)):
                assert found[path].tolist() == marks.chosen(*rows[row])[start:]


@in_any_plan
def test_branches_are_numbered_in_the_order_of_the_layers_they_join_at(rows, cells):
    plan = planned(rows, cells)
    edges = [(0, len(plan.trunk.growth))] + [(branch.base, branch.stop) for branch in plan.branches]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(edges))
    assert plan.size == edges[-1][1]
    layers = [branch.born for branch in plan.branches]
    assert layers == sorted(layers)
    assert layers == [born(cells[branch.cell]) for branch in plan.branches]


@pytest.mark.parametrize(
    ("sites", "layer"),
    [
        ([], 0),
        ([(0, "resid_pre")], 0),
        ([(2, "resid_post")], 3),
        ([(2, "mlp_out")], 2),
        ([(2, "resid_post"), (3, "z")], 3),
        ([(4, "resid_pre"), (1, "resid_post")], 2),
    ],
)
def test_a_cell_joins_at_the_first_layer_whose_input_or_inside_it_changes(sites, layer):
    assert first_layer([edit(all_tokens(), *site) for site in sites]) == layer


def test_cells_of_the_same_positions_grow_one_trie():
    plan = planned([((0, 1), 2)], [[(Marks(0, 1, False, True), layer, "z")] for layer in (0, 1, 2)])
    assert len({id(branch.growth) for branch in plan.branches}) == 1


@pytest.mark.parametrize("cells", [[[last_token()]], [[], [token(1)]], [[all_tokens(), token(1)], []]])
@pytest.mark.parametrize("generating", [True, False])
def test_what_selects_nothing_of_a_row_is_refused_unless_that_is_meant(cells, generating):
    rows = [Row((0, 1), PromptTokens(2, (0, 1))), Row((0,), PromptTokens(1, (0,)))]
    edits = [[edit(positions, 2) for positions in cell] for cell in cells]
    done = []
    in_waves(MODEL, rows, edits, done.append, generating=generating, allow_empty=True)
    if cells == [[last_token()]]:
        in_waves(MODEL, rows, edits, done.append, generating=generating)
        assert len(done) == 2
        return
    told = r"token\(1\) selects no token of nothing at layer 2: row 1 \(1"
    with pytest.raises(EmptySelectionError, match=told):
        in_waves(MODEL, rows, edits, done.append, generating=generating)
    assert len(done) == 1


@pytest.mark.parametrize("generating", [True, False])
def test_positions_of_what_is_generated_select_something_where_something_is_fed(generating):
    short, long = (Row((0,) * length, PromptTokens(1, (0,))) for length in (1, 2))
    cells, done = [[edit(generated_tokens())]], []
    in_waves(MODEL, [long], cells, done.append, generating=generating)
    if generating:
        in_waves(MODEL, [short], cells, done.append, generating=True)
        assert len(done) == 2
        return
    with pytest.raises(EmptySelectionError, match=r"generated_tokens\(\)"):
        in_waves(MODEL, [short], cells, done.append)


# Tokens counted in the blocks


@pytest.fixture
def counted(monkeypatch):
    """How many tokens have been through each of the model's blocks."""
    return counting(MODEL, monkeypatch)


def counting(model, monkeypatch):
    counts = [0] * model.cfg.n_layers
    for layer, block in enumerate(model.blocks):

        def passed(x, *args, forward=block.forward, layer=layer, **kwargs):
            counts[layer] += x.shape[0] * x.shape[1]
            return forward(x, *args, **kwargs)

        monkeypatch.setattr(block, "forward", passed)
    return counts


def reset(counts):
    counts[:] = [0] * len(counts)


def scored(prompts, cells, **options):
    plan = plan_choices(MODEL, prompts, [(" yes", " no")] * len(prompts))
    return score_cells(MODEL, plan, cells, **options)


UNLIKE = [[3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 14]]  # nothing to share, 12 tokens
LAST = N_LAYERS - 1


def at_last(layer, hook="resid_post", positions=None):
    return (Add(made_vector(MODEL, layer, hook), 1.0, positions or last_token()),)


@pytest.mark.parametrize("hook", ["resid_pre", "z", "resid_post"])
@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_steering_the_last_token_costs_one_token_a_cell_and_prompt_from_its_layer_on(counted, layer, hook):
    first = layer + (hook == "resid_post")
    for cells in (1, 7):
        reset(counted)
        scored(UNLIKE, [(), *[at_last(layer, hook)] * cells])
        steered = [len(UNLIKE) * cells if place >= first else 0 for place in range(N_LAYERS)]
        # Of the trunk only the last tokens go through the last block, unless something is done inside it.
        trunk = [12] * LAST + [12 if layer == LAST else len(UNLIKE)]
        assert counted == [clean + extra for clean, extra in zip(trunk, steered, strict=True)]


def test_a_cell_at_resid_post_runs_no_layer_up_to_its_own(counted):
    for layer in range(N_LAYERS):
        reset(counted)
        scored(UNLIKE, [(), at_last(layer, positions=all_tokens())])
        assert counted[: min(layer + 1, LAST)] == [12] * min(layer + 1, LAST)
        assert counted[layer + 1 : LAST] == [24] * (LAST - layer - 1)
        assert counted[LAST] == (12 if layer == LAST else 2 * len(UNLIKE))


def test_of_the_last_layer_only_what_is_read_is_run(counted):
    scored(UNLIKE, [()])
    assert counted == [12] * LAST + [len(UNLIKE)]
    reset(counted)
    generate(MODEL, UNLIKE, max_new_tokens=1, return_tokens=True)
    assert counted == [12] * LAST + [len(UNLIKE)]


def test_the_earliest_of_several_layers_decides(counted):
    both = at_last(2, "resid_pre") + at_last(0)
    scored(UNLIKE, [(), both])
    assert counted[:2] == [12, 12 + 3]


def test_what_comes_before_the_first_steered_position_is_never_computed_again(counted):
    prompts = [[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]
    for place, extra in ((0, 10), (1, 8), (3, 4), (-1, 2), (-2, 4)):
        reset(counted)
        scored(prompts, [(), at_last(0, "resid_pre", token(place))])
        assert counted[:LAST] == [10 + extra] * LAST, place


def test_a_common_beginning_is_computed_once_under_steering_of_every_token_too(counted):
    begin = [3, 4, 5, 6, 7, 8]
    prompts = [[*begin, 9], [*begin, 10], [*begin, 11, 12], begin, [*begin, 9]]
    for layer in range(N_LAYERS - 1):
        cells = [at_last(layer, "resid_pre", all_tokens())] * 3
        reset(counted)
        scored(prompts, [(), *cells])
        assert counted[:LAST] == [10 * (1 + (3 if place >= layer else 0)) for place in range(LAST)]


def test_a_beginning_under_different_positions_is_not_shared(counted):
    """Of two prompts that begin alike, the shorter one's last token is steered, the longer one's not."""
    prompts = [[3, 4, 5], [3, 4, 5, 6]]
    scored(prompts, [(), at_last(0, "resid_pre")])
    assert counted[0] == 4 + 2
    reset(counted)
    scored(prompts, [(), at_last(0, "resid_pre", ~last_token())])
    assert counted[0] == 4 + 3 + 2  # 3 4 5̸ and 3 4 5 6̸: "3 4" is shared


def test_one_cell_alone_shares_what_its_prompts_begin_with(counted):
    scored([[3, 4, 5, 6], [3, 4, 5, 7]], [at_last(1)])
    assert counted[:LAST] == [5] * LAST


def test_the_two_sides_of_a_pair_differ_in_one_token(counted):
    sides = [f"a b c d {letter} e f" for letter in "gh"]
    pairs = contrast_pairs([f"{side} A" for side in sides], [f"{side} B" for side in sides])
    capture_pairs(MODEL, pairs)
    # <s> a b c d, twice g e f, four last tokens
    assert counted == [5 + 2 * 3 + 4] * N_LAYERS


def test_a_capture_runs_no_layer_behind_the_last_that_is_read_or_steered(counted):
    capture(MODEL, UNLIKE, layers=[0])
    assert counted[1:] == [0, 0]
    reset(counted)
    capture(MODEL, UNLIKE, *at_last(1), layers=[0])
    assert counted[0] == 12
    assert counted[1:] == [12, 0]


def test_tokens_of_a_choice_are_fed_once_for_choices_that_share_them(counted):
    plan = plan_choices(MODEL, ["a b c"], [(" ( A )", " ( B )")])
    score_cells(MODEL, plan, [()])
    assert counted[:LAST] == [4 + 1 + 2] * LAST  # <s> a b c, "(", and "A" or "B"


def test_the_prompts_of_a_sweep_are_run_once_for_all_cells(counted):
    asked = ChoiceQuestions(["a b c", "a b d"], [(" yes", " no")] * 2)
    vectors = made_vector(MODEL, 1).at(layers=[0, 1])
    options = {"multipliers": [-1.0, 1.0, 2.0], "controls": 2, "control_layers": "all"}
    options["progress"] = False
    sweep(MODEL, vectors, asked, positions=last_token(), **options)
    assert counted[:LAST] == [5, 5 + 2 * 3 * 3]
    reset(counted)
    sweep(MODEL, vectors, asked, positions=last_token(), reuse=False, **options)
    assert counted[0] > 8 * 18


def streams_kept(*layers):
    return CleanStreams(frozenset(layers))


EVERYWHERE = [
    [at_last(layer, hook, all_tokens())] for layer in (0, 1) for hook in ("resid_pre", "resid_post")
]


@pytest.mark.parametrize("chunk", range(4))
def test_later_chunks_do_not_run_the_unsteered_prompts_again_and_have_the_same_bits(counted, chunk):
    cells = EVERYWHERE[chunk] * 3
    clean = streams_kept(0, 1, 2)
    scored(UNLIKE, [(), *cells], clean=clean)
    reset(counted)
    later = scored(UNLIKE, cells, clean=clean)
    first = 0 if chunk == 0 else (chunk + 1) // 2
    steered = [12 * 3 if layer >= first else 0 for layer in range(LAST)]
    assert counted == [*steered, 3 * len(UNLIKE)]
    alone = scored(UNLIKE, cells, clean=streams_kept(0, 1, 2))  # as after a kill
    plain = scored(UNLIKE, cells, reuse=False)
    for one, other, whole in zip(later, alone, plain, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
        pd.testing.assert_frame_equal(one, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "cells",
    [
        [(), at_last(0, positions=all_tokens())],  # the unsteered prompts are read
        [at_last(1, positions=all_tokens())],  # of one condition the trunk itself is steered
        [at_last(0), at_last(1)],  # what is steered looks back on unsteered tokens
        [at_last(LAST, positions=all_tokens())] * 2,  # starts after the last layer
    ],
    ids=["unsteered", "single", "last token", "last layer"],
)
def test_unsteered_prompts_are_run_where_more_is_needed_than_was_kept(cells):
    plain = scored(UNLIKE, cells, reuse=False)
    every = [(), *EVERYWHERE[1]]
    for filled in (False, True):
        clean = streams_kept(0, 1, 2, 3)
        if filled:
            scored(UNLIKE, every, clean=clean)
        for one, whole in zip(scored(UNLIKE, cells, clean=clean), plain, strict=True):
            pd.testing.assert_frame_equal(one, whole, atol=1e-4, rtol=0)
        for chunk in EVERYWHERE:
            later, expected = scored(UNLIKE, chunk * 2, clean=clean), scored(UNLIKE, chunk, reuse=False)
            pd.testing.assert_frame_equal(later[0], expected[0], atol=1e-4, rtol=0)


def test_what_memory_held_before_reaches_no_number_where_unsteered_prompts_are_not_run(monkeypatch):
    """Groups of unequal size are padded with keys of the first token, which is not run then."""
    prompts, clean = [[3, *[4] * 39], [5, *[6] * 29]], streams_kept(0, 1)
    expected = scored(prompts, [(), *EVERYWHERE[1] * 2], clean=clean)[1:]
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *size, **kw: new_empty(*size, **kw).fill_(torch.nan)
    )
    counts = counting(MODEL, monkeypatch)
    for one, other in zip(scored(prompts, EVERYWHERE[1] * 2, clean=clean), expected, strict=True):
        pd.testing.assert_frame_equal(one, other, atol=1e-5, rtol=0)
    assert counts[0] == 0  # a NaN would be looked for in every condition by itself


def test_unsteered_tokens_that_are_kept_share_no_pass_with_others(monkeypatch):
    """Or what is kept would depend on the chunk that it was computed in, to the last bit."""
    sizes = []
    forward = MODEL.blocks[1].forward
    monkeypatch.setattr(
        MODEL.blocks[1], "forward", lambda x, *args, **kw: sizes.append(x.shape[1]) or forward(x, *args, **kw)
    )
    scored(UNLIKE, EVERYWHERE[0] * 2, clean=streams_kept(0, 1))
    assert sizes == [12, 24]


def test_streams_that_would_take_too_much_memory_are_not_kept(counted):
    clean = streams_kept(0, 1, 2)
    scored(UNLIKE, [(), *EVERYWHERE[1]], clean=clean, memory=9_000)
    assert clean.kept == {}


def test_a_sweep_in_chunks_runs_the_unsteered_prompts_once(counted, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CELLS", 3)
    asked = ChoiceQuestions(["a b c", "d e f"], [(" yes", " no")] * 2)
    vectors = made_vector(MODEL, 0).at(layers=[0, 1])
    options = {"multipliers": [-1.0, 1.0, 2.0], "controls": 0, "progress": False}
    sweep(MODEL, vectors, asked, out=tmp_path / "sweep.parquet", **options)
    assert counted[:LAST] == [7, 7 + 3 * 7]


def test_the_prompts_of_a_generating_sweep_are_run_once_for_all_cells(counted):
    vectors = made_vector(MODEL, 1).at(layers=[0, 1])
    options = {"multipliers": [1.0, 2.0], "controls": 0, "progress": False, "positions": current_token()}
    sweep(MODEL, vectors, ["a b c", "a b d"], measure="generate", max_new_tokens=1, **options)
    assert counted[:LAST] == [5, 5 + 2 * 2]


# Logits


@pytest.fixture
def read(monkeypatch):
    """How many positions have been through the last norm, and how many through the unembedding; by call."""
    rows = {"ln_final": [], "unembed": []}
    for name, seen in rows.items():
        module = getattr(MODEL, name)

        def passed(x, forward=module.forward, seen=seen):
            seen.append(x.shape[0] * x.shape[1])
            return forward(x)

        monkeypatch.setattr(module, "forward", passed)
    return rows


def require_only(read, positions):
    """No position's logits are computed but these, with one norm for all of them or two."""
    assert sum(read["ln_final"]) in (positions, 2 * positions)
    assert sum(read["unembed"]) <= positions


def test_logits_are_computed_where_they_are_read_and_nowhere_else(read):
    scored(UNLIKE, [(), at_last(1), at_last(2)])
    require_only(read, 3 * 3)
    for rows in read.values():
        rows.clear()
    choice_logits(MODEL, ["a b c"], (" ( A )", " ( B )"))
    require_only(read, 2 * 3)  # "(", "A" or "B", and ")", of each choice


def test_without_mass_choices_of_one_token_need_no_unembedding_at_all(read):
    found = scored(UNLIKE, [(), at_last(1)], mass=False)
    assert read["unembed"] == []
    assert sum(read["ln_final"]) == 2 * 3
    expected = scored(UNLIKE, [(), at_last(1)])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["logit_difference"], other["logit_difference"], rtol=0, atol=1e-4)
        assert one["mass"].isna().all()


def test_without_mass_choices_that_are_read_apart_are_still_normalised():
    found = choice_logits(MODEL, ["a b c"], (" A", " ( B"), mass=False)
    expected = choice_logits(MODEL, ["a b c"], (" A", " ( B"), reuse=False)
    np.testing.assert_allclose(found["logit_difference"], expected["logit_difference"], rtol=0, atol=1e-4)
    assert found["mass"].isna().all()


def test_a_capture_computes_no_logits(read):
    capture(MODEL, UNLIKE, *at_last(1))
    assert read == {"ln_final": [], "unembed": []}


def test_each_new_token_needs_the_logits_of_the_texts_that_go_on(read):
    write_cells(MODEL, UNLIKE, [(), at_last(1)], Decoding(4, 4))
    assert read["unembed"] == [2 * 3] * 4


# Decoding


@pytest.fixture
def fed(monkeypatch):
    """How many tokens each decoding step is given."""
    rows, step = [], Decoder.step

    def counted_step(self, tokens):
        rows.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(Decoder, "step", counted_step)
    return rows


def test_all_cells_of_a_sweep_are_decoded_together(fed):
    write_cells(MODEL, UNLIKE, [(), at_last(0), at_last(1), (Ablate(2, "z"),)], Decoding(5, 5))
    assert fed == [3 * 4] * 4


def test_one_new_token_needs_no_decoding_step(fed, counted):
    generate(MODEL, UNLIKE, max_new_tokens=1, return_tokens=True)
    assert fed == []
    assert counted[:LAST] == [12] * LAST


def test_texts_that_have_ended_leave_the_batch(fed, monkeypatch):
    model = favouring(MODEL, 1, 2.5)
    counts = counting(model, monkeypatch)
    prompts = [[place, 3 + place % 7, 5, 30 - place] for place in range(3, 27)]
    cells = [(), (Add(made_vector(model, 1), 1.0),), (ProjectOut(made_vector(model, 0, seed=2)),)]
    texts = write_cells(model, prompts, cells, Decoding(12))
    lengths = [len(new) for cell in texts for new in cell]
    going_on = [sum(length > step for length in lengths) for step in range(1, 12)]
    assert len(set(going_on)) > 4
    assert len(fed) == sum(count > 0 for count in going_on)
    for rows, count in zip(fed, going_on, strict=False):
        assert count <= rows < count / 0.87
    assert fed[-1] < fed[0] / 2
    begun = {tuple(ids[: end + 1]) for ids in prompts for end in range(4)}
    assert counts[0] == len(begun) + sum(fed)


def test_a_copy_of_the_model_counts_the_same(monkeypatch):
    """The spy sees every block: with no sharing at all, each cell and prompt is counted whole."""
    model = copy.deepcopy(MODEL)
    counts = counting(model, monkeypatch)
    plan = plan_choices(model, UNLIKE[:1] * 3, [(" yes", " no")] * 3)
    score_cells(model, plan, [(), at_last(1)], reuse=False)
    assert counts == [2 * 12] * N_LAYERS
