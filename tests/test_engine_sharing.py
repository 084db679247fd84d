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
from tl_steer._generation import Decoding, generate
from tl_steer._scoring import choice_logits, plan_choices
from tl_steer.engine import CleanStreams, Row
from tl_steer.engine.shared.decoding import Decoder
from tl_steer.engine.shared.prefixes import Plan, first_layer
from tl_steer.interventions import Ablate, Add, ProjectOut
from tl_steer.interventions.operations import Edit
from tl_steer.positions import (
    Positions,
    PromptTokens,
    all_tokens,
    current_token,
    last_token,
    token,
)
from tl_steer.prompts import ChoiceQuestions, contrast_pairs
from tl_steer.sweeps import chunks
from tl_steer.sweeps._sweep import sweep

from .tiny_model import N_LAYERS, favouring, made_vector, make_model, score, word_tokenizer, write

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
        inside = [(ids[index] + index + offset) % self.of == self.rest for index in range(length)]
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
CONDITIONS = st.lists(
    st.lists(
        st.tuples(MARKS, st.integers(0, 3), st.sampled_from(["resid_pre", "z", "resid_post"])), max_size=3
    ),
    min_size=1,
    max_size=4,
)


# Forks after forks, in the shared prefix and in a delta; a row that is a beginning, one that is there twice.
FORKED = [((0, *rest), 3) for rest in ((0, 0), (0, 1), (1, 0, 0), (1, 0, 1), (1, 1), (1, 1))] + [((0, 1), 1)]
EVERY, LATE = Marks(0, 1, False, True), Marks(2, 4, False, True)


def in_any_plan(test):
    """Run a test for any rows and conditions, and for those with forks after forks."""
    for conditions in (
        [[]],
        [[(EVERY, 1, "z")]],
        [[], [(EVERY, 0, "resid_post")], [(LATE, 0, "z"), (EVERY, 2, "z")]],
    ):
        test = example(rows=FORKED, conditions=conditions)(test)
    return settings(max_examples=80)(given(rows=ROWS, conditions=CONDITIONS)(test))


def edit(positions, layer=0, hook="resid_post"):
    return Edit(layer, hook, positions, lambda x, index: x, None, f"nothing at layer {layer}")


def planned(rows, conditions):
    edits = [
        [edit(marks.positions, layer, hook) for marks, layer, hook in condition] for condition in conditions
    ]
    rows = [Row(ids, PromptTokens(length, ids[:length])) for ids, length in rows]
    return Plan(rows, edits)


def flags(condition, row):
    """What is selected at each token of a row, for all marks of a condition together."""
    ids, length = row
    return (
        list(zip(*(marks.chosen(ids, length) for marks, _, _ in condition), strict=True))
        if condition
        else [()] * len(ids)
    )


def first_changed(condition, row):
    return next((index for index, chosen in enumerate(flags(condition, row)) if any(chosen)), len(row[0]))


def beginnings(condition, row, start=0):
    """Each token from `start` on as all that it hangs on: the ids up to it, and what is selected there."""
    ids, chosen = row[0], flags(condition, row)
    return [(ids[: index + 1], tuple(chosen[: index + 1])) for index in range(start, len(ids))]


def start_layer(condition):
    return min((layer + (hook == "resid_post") for _, layer, hook in condition), default=0)


def numbered(plan):
    """Ids and places of all the plan's tokens, by number."""
    return [
        np.concatenate([getattr(delta.trie, name) for delta in plan.parts]) for name in ("tokens", "index")
    ]


@in_any_plan
def test_a_path_gives_back_ids_and_places_of_its_row(rows, conditions):
    plan = planned(rows, conditions)
    tokens, index = numbered(plan)
    assert len(tokens) == plan.size
    for (condition, edits), (row, (ids, _)) in itertools.product(enumerate(conditions), enumerate(rows)):
        for layer in (None, *range(5)):
            path = plan.path(condition, row, layer=layer)
            assert tuple(tokens[path]) == ids
            assert index[path].tolist() == list(range(len(ids)))
            alone = len(conditions) == 1
            clean = not alone and layer is not None and layer < start_layer(edits)
            changed = len(ids) if alone or clean else first_changed(edits, rows[row])
            assert path[:changed].tolist() == plan.prefix.trie.paths[row][:changed].tolist()
            assert (path[changed:] >= len(plan.prefix.trie)).all()


@in_any_plan
def test_a_token_is_there_once_for_all_rows_that_begin_alike(rows, conditions):
    """The shared prefix: every beginning. A delta: every beginning and its selection, from a change on."""
    plan = planned(rows, conditions)
    own = conditions[0] if len(conditions) == 1 else []
    assert len(plan.prefix.trie) == len({each for row in rows for each in beginnings(own, row)})
    if len(conditions) == 1:
        assert plan.deltas == []
        return
    assert sorted(delta.condition for delta in plan.deltas) == list(range(len(conditions)))
    for delta in plan.deltas:
        condition = conditions[delta.condition]
        needed = {each for row in rows for each in beginnings(condition, row, first_changed(condition, row))}
        assert len(delta.trie) == len(needed)
        assert delta.trie.starts == tuple(first_changed(condition, row) for row in rows)


@in_any_plan
def test_two_tokens_are_one_exactly_where_all_before_them_is_alike(rows, conditions):
    plan = planned(rows, conditions)
    for condition, edits in enumerate(conditions):
        means = {}
        for row, questions in enumerate(rows):
            for number, beginning in zip(
                plan.path(condition, row), beginnings(edits, questions), strict=True
            ):
                assert means.setdefault(number, beginning) == beginning
        assert len(set(means.values())) == len(means)


@in_any_plan
def test_the_context_of_a_segment_is_what_its_rows_begin_with(rows, conditions):
    plan = planned(rows, conditions)
    contexts = {}
    for delta in plan.parts:
        numbers = []
        for segment in delta.trie.segments:
            here = range(delta.base + segment.start, delta.base + segment.stop)
            numbers += here
            before = segment.context(delta.base).tolist()
            contexts |= {number: before + list(here[:index]) for index, number in enumerate(here)}
        assert numbers == list(range(delta.base, delta.stop))
    assert sorted(contexts) == list(range(plan.size))
    for condition, row in itertools.product(range(len(conditions)), range(len(rows))):
        for layer in (None, -1):
            path = plan.path(condition, row, layer=layer).tolist()
            for index, number in enumerate(path):
                assert contexts[number] == path[:index]
                assert max(path[:index], default=-1) < number


@in_any_plan
def test_a_segment_has_no_fork_and_ends_at_one(rows, conditions):
    plan = planned(rows, conditions)
    for delta in plan.parts:
        ends = {segment.stop for segment in delta.trie.segments}
        behind = {number: set() for number in range(len(delta.trie))}
        for path in delta.trie.paths:
            for here, following in itertools.pairwise(path.tolist()):
                behind[here].add(following)
        for number, others in behind.items():
            assert (len(others) == 1) == (number + 1 not in ends)


@in_any_plan
def test_a_branch_knows_where_it_comes_from_and_what_is_selected(rows, conditions):
    plan = planned(rows, conditions)
    trie = plan.prefix.trie
    for delta in plan.deltas:
        condition = conditions[delta.condition]
        for row, (path, start) in enumerate(zip(delta.trie.paths, delta.trie.starts, strict=True)):
            assert delta.trie.source[path].tolist() == trie.paths[row][start:].tolist()
    for delta in plan.deltas or [plan.prefix]:
        condition = conditions[delta.condition]
        for marks, _, _ in condition:
            result = delta.trie.selected[marks.positions]
            for row, (path, start) in enumerate(zip(delta.trie.paths, delta.trie.starts, strict=True)):
                assert result[path].tolist() == marks.chosen(*rows[row])[start:]


@in_any_plan
def test_branches_are_numbered_in_the_order_of_the_layers_they_join_at(rows, conditions):
    plan = planned(rows, conditions)
    edges = [(0, len(plan.prefix.trie))] + [(delta.base, delta.stop) for delta in plan.deltas]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(edges))
    assert plan.size == edges[-1][1]
    layers = [delta.start_layer for delta in plan.deltas]
    assert layers == sorted(layers)
    assert layers == [start_layer(conditions[delta.condition]) for delta in plan.deltas]


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
def test_a_condition_joins_at_the_first_layer_whose_input_or_inside_it_changes(sites, layer):
    assert first_layer([edit(all_tokens(), *site) for site in sites]) == layer


def test_conditions_of_the_same_positions_grow_one_trie():
    plan = planned([((0, 1), 2)], [[(Marks(0, 1, False, True), layer, "z")] for layer in (0, 1, 2)])
    assert len({id(delta.trie) for delta in plan.deltas}) == 1


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


def scored(prompts, conditions, **options):
    plan = plan_choices(MODEL, prompts, [(" yes", " no")] * len(prompts))
    return score(MODEL, plan, conditions, **options)


UNLIKE = [[3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 14]]  # nothing to share, 12 tokens
LAST = N_LAYERS - 1


def at_last(layer, hook="resid_post", positions=None):
    return (Add(made_vector(MODEL, layer, hook), 1.0, positions or last_token()),)


@pytest.mark.parametrize("hook", ["resid_pre", "z", "resid_post"])
@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_steering_the_last_token_costs_one_token_a_condition_and_prompt_from_its_layer_on(
    counted, layer, hook
):
    first = layer + (hook == "resid_post")
    for conditions in (1, 7):
        reset(counted)
        scored(UNLIKE, [(), *[at_last(layer, hook)] * conditions])
        steered = [len(UNLIKE) * conditions if index >= first else 0 for index in range(N_LAYERS)]
        # Of the shared prefix only the last tokens go through the last block, unless it is edited inside.
        shared = [12] * LAST + [12 if layer == LAST else len(UNLIKE)]
        assert counted == [clean + extra for clean, extra in zip(shared, steered, strict=True)]


def test_of_the_last_layer_only_what_is_read_is_run(counted):
    scored(UNLIKE, [()])
    assert counted == [12] * LAST + [len(UNLIKE)]
    reset(counted)
    generate(MODEL, UNLIKE, max_new_tokens=1, return_tokens=True)
    assert counted == [12] * LAST + [len(UNLIKE)]


def test_what_comes_before_the_first_steered_position_is_never_computed_again(counted):
    prompts = [[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]
    for index, extra in ((0, 10), (1, 8), (3, 4), (-1, 2), (-2, 4)):
        reset(counted)
        scored(prompts, [(), at_last(0, "resid_pre", token(index))])
        assert counted[:LAST] == [10 + extra] * LAST, index


def test_a_common_beginning_is_computed_once_under_steering_of_every_token_too(counted):
    begin = [3, 4, 5, 6, 7, 8]
    prompts = [[*begin, 9], [*begin, 10], [*begin, 11, 12], begin, [*begin, 9]]
    for layer in range(N_LAYERS - 1):
        conditions = [at_last(layer, "resid_pre", all_tokens())] * 3
        reset(counted)
        scored(prompts, [(), *conditions])
        assert counted[:LAST] == [10 * (1 + (3 if index >= layer else 0)) for index in range(LAST)]


def test_a_beginning_under_different_positions_is_not_shared(counted):
    """Of two prompts that begin alike, the shorter one's last token is steered, the longer one's not."""
    prompts = [[3, 4, 5], [3, 4, 5, 6]]
    scored(prompts, [(), at_last(0, "resid_pre")])
    assert counted[0] == 4 + 2
    reset(counted)
    scored(prompts, [(), at_last(0, "resid_pre", ~last_token())])
    assert counted[0] == 4 + 3 + 2  # 3 4 5̸ and 3 4 5 6̸: "3 4" is shared


def test_one_condition_alone_shares_what_its_prompts_begin_with(counted):
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
    score(MODEL, plan, [()])
    assert counted[:LAST] == [4 + 1 + 2] * LAST  # <s> a b c, "(", and "A" or "B"


def test_the_prompts_of_a_sweep_are_run_once_for_all_conditions(counted):
    questions = ChoiceQuestions(["a b c", "a b d"], [(" yes", " no")] * 2)
    vectors = made_vector(MODEL, 1).at(layers=[0, 1])
    options = {"multipliers": [-1.0, 1.0, 2.0], "controls": 2, "control_layers": "all"}
    options["progress"] = False
    sweep(MODEL, vectors, questions, positions=last_token(), **options)
    assert counted[:LAST] == [5, 5 + 2 * 3 * 3]
    reset(counted)
    sweep(MODEL, vectors, questions, positions=last_token(), reuse=False, **options)
    assert counted[0] > 8 * 18


def streams_kept(*layers):
    return CleanStreams(frozenset(layers))


EVERYWHERE = [
    [at_last(layer, hook, all_tokens())] for layer in (0, 1) for hook in ("resid_pre", "resid_post")
]


@pytest.mark.parametrize("chunk", range(4))
def test_later_chunks_do_not_run_the_unsteered_prompts_again_and_have_the_same_bits(counted, chunk):
    conditions = EVERYWHERE[chunk] * 3
    clean = streams_kept(0, 1, 2)
    scored(UNLIKE, [(), *conditions], clean=clean)
    reset(counted)
    later = scored(UNLIKE, conditions, clean=clean)
    first = 0 if chunk == 0 else (chunk + 1) // 2
    steered = [12 * 3 if layer >= first else 0 for layer in range(LAST)]
    assert counted == [*steered, 3 * len(UNLIKE)]
    alone = scored(UNLIKE, conditions, clean=streams_kept(0, 1, 2))  # as after a kill
    plain = scored(UNLIKE, conditions, reuse=False)
    for one, other, whole in zip(later, alone, plain, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
        pd.testing.assert_frame_equal(one, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "conditions",
    [
        [(), at_last(0, positions=all_tokens())],  # the unsteered prompts are read
        [at_last(1, positions=all_tokens())],  # of one condition the shared prefix itself is steered
        [at_last(0), at_last(1)],  # what is steered looks back on unsteered tokens
        [at_last(LAST, positions=all_tokens())] * 2,  # starts after the last layer
    ],
    ids=["unsteered", "single", "last token", "last layer"],
)
def test_unsteered_prompts_are_run_where_more_is_needed_than_was_kept(conditions):
    plain = scored(UNLIKE, conditions, reuse=False)
    every = [(), *EVERYWHERE[1]]
    for filled in (False, True):
        clean = streams_kept(0, 1, 2, 3)
        if filled:
            scored(UNLIKE, every, clean=clean)
        for one, whole in zip(scored(UNLIKE, conditions, clean=clean), plain, strict=True):
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


def test_unsteered_tokens_that_are_cached_share_no_pass_with_others(monkeypatch):
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
    assert clean.streams == {}


def test_a_sweep_in_chunks_runs_the_unsteered_prompts_once(counted, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "MAX_CONDITIONS", 3)
    questions = ChoiceQuestions(["a b c", "d e f"], [(" yes", " no")] * 2)
    vectors = made_vector(MODEL, 0).at(layers=[0, 1])
    options = {"multipliers": [-1.0, 1.0, 2.0], "controls": 0, "progress": False}
    sweep(MODEL, vectors, questions, out=tmp_path / "sweep.parquet", **options)
    assert counted[:LAST] == [7, 7 + 3 * 7]


def test_the_prompts_of_a_generating_sweep_are_run_once_for_all_conditions(counted):
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
    result = scored(UNLIKE, [(), at_last(1)], mass=False)
    assert read["unembed"] == []
    assert sum(read["ln_final"]) == 2 * 3
    expected = scored(UNLIKE, [(), at_last(1)])
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_allclose(one["logit_difference"], other["logit_difference"], rtol=0, atol=1e-4)
        assert one["mass"].isna().all()


def test_without_mass_choices_that_are_read_apart_are_still_normalised():
    result = choice_logits(MODEL, ["a b c"], (" A", " ( B"), mass=False)
    expected = choice_logits(MODEL, ["a b c"], (" A", " ( B"), reuse=False)
    np.testing.assert_allclose(result["logit_difference"], expected["logit_difference"], rtol=0, atol=1e-4)
    assert result["mass"].isna().all()


def test_a_capture_computes_no_logits(read):
    capture(MODEL, UNLIKE, *at_last(1))
    assert read == {"ln_final": [], "unembed": []}


def test_each_new_token_needs_the_logits_of_the_texts_that_continue(read):
    write(MODEL, UNLIKE, [(), at_last(1)], Decoding(4, 4))
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


def test_all_conditions_of_a_sweep_are_decoded_together(fed):
    write(MODEL, UNLIKE, [(), at_last(0), at_last(1), (Ablate(2, "z"),)], Decoding(5, 5))
    assert fed == [3 * 4] * 4


def test_texts_that_have_ended_leave_the_batch(fed, monkeypatch):
    model = favouring(MODEL, 1, 2.5)
    counts = counting(model, monkeypatch)
    prompts = [[index, 3 + index % 7, 5, 30 - index] for index in range(3, 27)]
    conditions = [(), (Add(made_vector(model, 1), 1.0),), (ProjectOut(made_vector(model, 0, seed=2)),)]
    texts = write(model, prompts, conditions, Decoding(12))
    lengths = [len(new) for condition in texts for new in condition]
    going_on = [sum(length > step for length in lengths) for step in range(1, 12)]
    assert len(set(going_on)) > 4
    assert len(fed) == sum(count > 0 for count in going_on)
    for rows, count in zip(fed, going_on, strict=False):
        assert count <= rows < count / 0.87
    assert fed[-1] < fed[0] / 2
    begun = {tuple(ids[: end + 1]) for ids in prompts for end in range(4)}
    assert counts[0] == len(begun) + sum(fed)


def test_a_copy_of_the_model_counts_the_same(monkeypatch):
    """The spy sees every block: with no sharing at all, each condition and prompt is counted whole."""
    model = copy.deepcopy(MODEL)
    counts = counting(model, monkeypatch)
    plan = plan_choices(model, UNLIKE[:1] * 3, [(" yes", " no")] * 3)
    score(model, plan, [(), at_last(1)], reuse=False)
    assert counts == [2 * 12] * N_LAYERS
