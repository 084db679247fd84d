"""What is computed at all: a plan's trie against sets of plain tuples, and the tokens per block counted."""

import functools
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
from tl_steer.engine.paths import path_of
from tl_steer.engine.shared.decoding import Decoder
from tl_steer.engine.shared.lanes import prompt_groups, shared_lanes
from tl_steer.engine.shared.prefixes import Plan, first_layer
from tl_steer.interventions import Ablate, Add, ProjectOut
from tl_steer.interventions.operations import Edit
from tl_steer.positions import Positions, PromptTokens, all_tokens, current_token, last_token, token
from tl_steer.prompts import ChoiceQuestions, contrast_pairs
from tl_steer.sweeps import chunks
from tl_steer.sweeps._sweep import sweep

from .tiny_model import N_LAYERS, favouring, made_vector, make_model, score, word_tokenizer, write

MODEL = make_model(word_tokenizer())
path_of(MODEL)  # its probe is not counted below


# The trie, against plain Python


@dataclass(frozen=True)
class Marks:
    """Positions that select by a rule on a token's id, its index and the prompt's length."""

    rest: int
    of: int
    of_the_end: bool
    generated: bool

    def chosen(self, ids, length):
        """Whether each id is selected; the first `length` ids are the prompt."""
        offset = length if self.of_the_end else 0
        inside = [(ids[index] + index + offset) % self.of == self.rest for index in range(length)]
        return inside + [self.generated] * (len(ids) - length)

    @property
    def positions(self):
        selected = lambda prompt: torch.tensor(self.chosen(prompt.ids, prompt.length))  # noqa: E731
        return Positions(str(self), self.generated, self.of_the_end, selected)


MARKS = st.builds(Marks, st.integers(0, 3), st.integers(1, 4), st.booleans(), st.booleans())
# A row: its ids, and how many of them are the prompt.
ROW = st.lists(st.integers(0, 1), min_size=1, max_size=6).flatmap(
    lambda ids: st.tuples(st.just(tuple(ids)), st.integers(1, len(ids)))
)
ROWS = st.lists(ROW, min_size=1, max_size=8)
EDIT = st.tuples(MARKS, st.integers(0, 3), st.sampled_from(["resid_pre", "z", "resid_post"]))
CONDITIONS = st.lists(st.lists(EDIT, max_size=3), min_size=1, max_size=4)
# Forks after forks, in the shared prefix and in a delta; a row that is a beginning, one that is there twice.
FORKED = [((0, *rest), 3) for rest in ((0, 0), (0, 1), (1, 0, 0), (1, 0, 1), (1, 1), (1, 1))] + [((0, 1), 1)]
EVERY, LATE = Marks(0, 1, False, True), Marks(2, 4, False, True)


def in_any_plan(test):
    """Run a test for any rows and conditions, and for those with forks after forks."""
    several = [[], [(EVERY, 0, "resid_post")], [(LATE, 0, "z"), (EVERY, 2, "z")]]
    for conditions in ([[]], [[(EVERY, 1, "z")]], several):
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
    chosen = [marks.chosen(ids, length) for marks, _, _ in condition]
    return [tuple(marks[index] for marks in chosen) for index in range(len(ids))]


def first_changed(condition, row):
    return next((index for index, chosen in enumerate(flags(condition, row)) if any(chosen)), len(row[0]))


def beginnings(condition, row, start=0):
    """All that each token from `start` on depends on: the ids up to it, and what is selected there."""
    ids, chosen = row[0], flags(condition, row)
    return [(ids[: index + 1], tuple(chosen[: index + 1])) for index in range(start, len(ids))]


def start_layer(condition):
    return min((layer + (hook == "resid_post") for _, layer, hook in condition), default=0)


@in_any_plan
def test_a_path_gives_the_ids_and_indices_of_its_row(rows, conditions):
    plan = planned(rows, conditions)
    tries = [delta.trie for delta in plan.parts]
    tokens = np.concatenate([trie.tokens for trie in tries])
    index = np.concatenate([trie.index for trie in tries])
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
def test_a_token_is_stored_once_for_all_rows_with_the_same_beginning(rows, conditions):
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
def test_two_tokens_are_shared_exactly_where_their_beginnings_are_equal(rows, conditions):
    plan = planned(rows, conditions)
    for condition, edits in enumerate(conditions):
        shared = {}
        for row, ids in enumerate(rows):
            numbers = plan.path(condition, row)
            for number, beginning in zip(numbers, beginnings(edits, ids), strict=True):
                assert shared.setdefault(number, beginning) == beginning
        assert len(set(shared.values())) == len(shared)


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
        following = {number: set() for number in range(len(delta.trie))}
        for path in delta.trie.paths:
            for here, after in itertools.pairwise(path.tolist()):
                following[here].add(after)
        for number, others in following.items():
            assert (len(others) == 1) == (number + 1 not in ends)


@in_any_plan
def test_a_delta_stores_its_source_and_what_is_selected(rows, conditions):
    plan = planned(rows, conditions)
    for delta in plan.deltas or [plan.prefix]:
        trie = delta.trie
        for row, (path, start) in enumerate(zip(trie.paths, trie.starts, strict=True)):
            if plan.deltas:
                assert trie.source[path].tolist() == plan.prefix.trie.paths[row][start:].tolist()
            for marks, _, _ in conditions[delta.condition]:
                assert trie.selected[marks.positions][path].tolist() == marks.chosen(*rows[row])[start:]


@in_any_plan
def test_deltas_are_numbered_in_the_order_of_their_first_layers(rows, conditions):
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
def test_a_condition_starts_at_the_first_layer_that_it_changes_inside_or_whose_input_it_changes(sites, layer):
    assert first_layer([edit(all_tokens(), *site) for site in sites]) == layer


def test_conditions_of_the_same_positions_share_one_trie():
    plan = planned([((0, 1), 2)], [[(EVERY, layer, "z")] for layer in (0, 1, 2)])
    assert len({id(delta.trie) for delta in plan.deltas}) == 1


# Tokens counted in the blocks


def spy(monkeypatch, module):
    """A list that gets the number of tokens of every pass through a module."""
    sizes, forward = [], module.forward

    def passed(x, *args, **kwargs):
        sizes.append(x.shape[0] * x.shape[1])
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(module, "forward", passed)
    return sizes


@pytest.fixture
def counted(monkeypatch):
    """A function that makes a call and returns how many tokens went through each of the model's blocks."""
    sizes = [spy(monkeypatch, block) for block in MODEL.blocks]

    def count(call, *args, **options):
        for each in sizes:
            each.clear()
        call(*args, **options)
        return [sum(each) for each in sizes]

    return count


UNLIKE = [[3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 14]]  # nothing to share, 12 tokens
ALIKE = [[3, 4, 5], [3, 4, 5, 6]]
LAST = N_LAYERS - 1


def scored(prompts, conditions, **options):
    plan = plan_choices(MODEL, prompts, [(" yes", " no")] * len(prompts))
    return score(MODEL, plan, conditions, **options)


def at_last(layer, hook="resid_post", positions=None):
    return (Add(made_vector(MODEL, layer, hook), 1.0, positions or last_token()),)


def swept(*prompts, multipliers=(-1.0, 1.0, 2.0), **options):
    vectors = made_vector(MODEL, 1).at(layers=[0, 1])
    questions = prompts if "measure" in options else ChoiceQuestions(prompts, [(" yes", " no")] * 2)
    options = {"controls": 0, "progress": False, "positions": last_token()} | options
    return sweep(MODEL, vectors, questions, multipliers=multipliers, **options)


def require_close(tables, expected, atol=1e-4):
    for one, other in zip(tables, expected, strict=True):
        pd.testing.assert_frame_equal(one, other, atol=atol, rtol=0)


@pytest.mark.parametrize("hook", ["resid_pre", "z", "resid_post"])
@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_steering_the_last_token_costs_one_token_per_condition_and_prompt_from_its_layer_on(
    counted, layer, hook
):
    first = layer + (hook == "resid_post")
    # Of the shared prefix only the last tokens go through the last block, unless it is edited inside.
    shared = [12] * LAST + [12 if layer == LAST else len(UNLIKE)]
    for conditions in (1, 7):
        steered = [len(UNLIKE) * conditions if index >= first else 0 for index in range(N_LAYERS)]
        counts = counted(scored, UNLIKE, [(), *[at_last(layer, hook)] * conditions])
        assert counts == [clean + extra for clean, extra in zip(shared, steered, strict=True)]


BEGIN = [3, 4, 5, 6, 7, 8]
FIVE = [[*BEGIN, 9], [*BEGIN, 10], [*BEGIN, 11, 12], BEGIN, [*BEGIN, 9]]  # 10 different beginnings
PAIRS = contrast_pairs(*([f"a b c d {letter} e f {answer}" for letter in "gh"] for answer in "AB"))
# Tokens per block, or of the first blocks.
COUNTS = {
    "of the last layer only what is read": (lambda: scored(UNLIKE, [()]), [12, 12, 3]),
    "one new token": (lambda: generate(MODEL, UNLIKE, max_new_tokens=1, return_tokens=True), [12, 12, 3]),
    "one condition alone": (lambda: scored([[3, 4, 5, 6], [3, 4, 5, 7]], [at_last(1)]), [5, 5]),
    "the last token, which differs": (lambda: scored(ALIKE, [(), at_last(0, "resid_pre")]), [4 + 2]),
    # Of the steered 3 4 5 and 3 4 5 6, the first two tokens are shared.
    "all but the last": (lambda: scored(ALIKE, [(), at_last(0, "resid_pre", ~last_token())]), [4 + 3 + 2]),
    "every token": (lambda: scored(FIVE, [(), *[at_last(0, "resid_pre", all_tokens())] * 3]), [40, 40]),
    "from layer 1 on": (lambda: scored(FIVE, [(), *[at_last(1, "resid_pre", all_tokens())] * 3]), [10, 40]),
    # <s> a b c d, twice g e f, four last tokens
    "sides of pairs": (lambda: capture_pairs(MODEL, PAIRS), [5 + 2 * 3 + 4] * N_LAYERS),
    "a capture at layer 0": (lambda: capture(MODEL, UNLIKE, layers=[0]), [12, 0, 0]),
    "layer 0 steered at 1": (lambda: capture(MODEL, UNLIKE, *at_last(1), layers=[0]), [12, 12, 0]),
    # <s> a b c, "(", and "A" or "B"
    "tokens of choices": (lambda: choice_logits(MODEL, ["a b c"], (" ( A )", " ( B )")), [4 + 1 + 2] * LAST),
    "a sweep": (lambda: swept("a b c", "a b d", controls=2, control_layers="all"), [5, 5 + 2 * 3 * 3]),
    "a generating sweep": (
        lambda: swept("a b c", "a b d", measure="generate", max_new_tokens=1, positions=current_token()),
        [5, 5 + 2 * 3],
    ),
}


@pytest.mark.parametrize(("call", "expected"), COUNTS.values(), ids=COUNTS)
def test_a_call_runs_only_the_tokens_that_it_needs(counted, call, expected):
    assert counted(call)[: len(expected)] == expected


def test_what_comes_before_the_first_steered_position_is_never_computed_again(counted):
    prompts = [[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]
    for index, extra in ((0, 10), (1, 8), (3, 4), (-1, 2), (-2, 4)):
        counts = counted(scored, prompts, [(), at_last(0, "resid_pre", token(index))])
        assert counts[:LAST] == [10 + extra] * LAST, index


def test_without_reuse_a_sweep_runs_every_prompt_for_every_condition(counted):
    counts = counted(swept, "a b c", "a b d", controls=2, control_layers="all", reuse=False)
    assert counts[0] > 8 * 18


def test_a_sweep_in_chunks_runs_the_unsteered_prompts_once(counted, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "MAX_CONDITIONS", 3)
    counts = counted(swept, "a b c", "d e f", positions=all_tokens(), out=tmp_path / "sweep.parquet")
    assert counts[:LAST] == [7, 7 + 3 * 7]


def clean_streams(*layers):
    return CleanStreams(frozenset(layers))


EVERYWHERE = [
    [at_last(layer, hook, all_tokens())] for layer in (0, 1) for hook in ("resid_pre", "resid_post")
]


@pytest.mark.parametrize("chunk", range(4))
def test_later_chunks_do_not_run_the_unsteered_prompts_again_and_have_the_same_bits(counted, chunk):
    conditions = EVERYWHERE[chunk] * 3
    clean = clean_streams(0, 1, 2)
    scored(UNLIKE, [(), *conditions], clean=clean)
    first = (chunk + 1) // 2
    steered = [12 * 3 if layer >= first else 0 for layer in range(LAST)]
    assert counted(scored, UNLIKE, conditions, clean=clean) == [*steered, 3 * len(UNLIKE)]
    later = scored(UNLIKE, conditions, clean=clean)
    alone = scored(UNLIKE, conditions, clean=clean_streams(0, 1, 2))  # as after a kill
    for one, other in zip(later, alone, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    require_close(later, scored(UNLIKE, conditions, reuse=False))


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
def test_unsteered_prompts_are_run_where_more_is_needed_than_is_cached(conditions):
    for before in ([], [(), *EVERYWHERE[1]]):
        clean = clean_streams(0, 1, 2, 3)
        if before:
            scored(UNLIKE, before, clean=clean)
        require_close(scored(UNLIKE, conditions, clean=clean), scored(UNLIKE, conditions, reuse=False))
        for chunk in EVERYWHERE:
            require_close(scored(UNLIKE, chunk * 2, clean=clean)[:1], scored(UNLIKE, chunk, reuse=False))


def test_uninitialised_memory_reaches_no_number_where_unsteered_prompts_are_not_run(monkeypatch):
    """Groups of unequal size are padded with keys of the first token, which is not run then."""
    prompts, clean = [[3, *[4] * 39], [5, *[6] * 29]], clean_streams(0, 1)
    expected = scored(prompts, [(), *EVERYWHERE[1] * 2], clean=clean)[1:]
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *size, **kw: new_empty(*size, **kw).fill_(torch.nan)
    )
    sizes = spy(monkeypatch, MODEL.blocks[0])
    require_close(scored(prompts, EVERYWHERE[1] * 2, clean=clean), expected, atol=1e-5)
    assert sum(sizes) == 0  # after a NaN, every condition would be run by itself


def test_unsteered_tokens_that_are_cached_share_no_pass_with_others(monkeypatch):
    """Or the cached streams would depend on the chunk that they were computed in, to the last bit."""
    sizes = spy(monkeypatch, MODEL.blocks[1])
    scored(UNLIKE, EVERYWHERE[0] * 2, clean=clean_streams(0, 1))
    assert sizes == [12, 24]


def test_streams_that_would_take_too_much_memory_are_not_cached():
    clean = clean_streams(0, 1, 2)
    scored(UNLIKE, [(), *EVERYWHERE[1]], clean=clean, memory=9_000)
    assert clean.streams == {}


# Logits


@pytest.fixture
def read(monkeypatch):
    """How many positions go through the last norm, and how many through the unembedding, per call."""
    return {name: spy(monkeypatch, getattr(MODEL, name)) for name in ("ln_final", "unembed")}


@pytest.mark.parametrize(
    ("call", "positions"),
    [
        (lambda: scored(UNLIKE, [(), at_last(1), at_last(2)]), 3 * 3),
        # "(", "A" or "B", and ")", of each choice
        (lambda: choice_logits(MODEL, ["a b c"], (" ( A )", " ( B )")), 2 * 3),
    ],
    ids=["conditions", "choices of several tokens"],
)
def test_logits_are_computed_only_where_they_are_read(read, call, positions):
    """With one norm for all positions, or two."""
    call()
    assert sum(read["ln_final"]) in (positions, 2 * positions)
    assert sum(read["unembed"]) <= positions


def require_no_mass(tables, expected):
    for one, other in zip(tables, expected, strict=True):
        np.testing.assert_allclose(one["logit_difference"], other["logit_difference"], rtol=0, atol=1e-4)
        assert one["mass"].isna().all()


def test_without_mass_choices_of_one_token_need_no_unembedding_at_all(read):
    result = scored(UNLIKE, [(), at_last(1)], mass=False)
    assert read["unembed"] == []
    assert sum(read["ln_final"]) == 2 * 3
    require_no_mass(result, scored(UNLIKE, [(), at_last(1)]))


def test_without_mass_choices_that_are_read_at_different_tokens_are_still_normalised():
    mixed = functools.partial(choice_logits, MODEL, ["a b c"], (" A", " ( B"))
    require_no_mass([mixed(mass=False)], [mixed(reuse=False)])


def test_a_capture_computes_no_logits(read):
    capture(MODEL, UNLIKE, *at_last(1))
    assert read == {"ln_final": [], "unembed": []}


# Decoding


@pytest.fixture
def step_sizes(monkeypatch):
    """How many tokens each decoding step gets."""
    sizes, step = [], Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, tokens: sizes.append(len(tokens)) or step(self, tokens))
    return sizes


def test_all_conditions_are_decoded_together_with_only_the_logits_of_their_new_tokens(step_sizes, read):
    write(MODEL, UNLIKE, [(), at_last(0), at_last(1), (Ablate(2, "z"),)], Decoding(5, 5))
    assert step_sizes == [3 * 4] * 4
    assert read["unembed"] == [3 * 4] * 5


def test_texts_that_have_ended_leave_the_batch(step_sizes, monkeypatch):
    model = favouring(MODEL, 1, 2.5)
    path_of(model)
    step_sizes.clear()
    prompts = [[index, 3 + index % 7, 5, 30 - index] for index in range(3, 27)]
    conditions = [(), (Add(made_vector(model, 1), 1.0),), (ProjectOut(made_vector(model, 0, seed=2)),)]
    texts = write(model, prompts, conditions, Decoding(12))
    lengths = [len(new) for condition in texts for new in condition]
    unfinished = [sum(length > step for length in lengths) for step in range(1, 12)]
    assert len(set(unfinished)) > 4
    assert len(step_sizes) == sum(count > 0 for count in unfinished)
    for rows, count in zip(step_sizes, unfinished, strict=False):
        assert count <= rows < count / 0.87
    assert step_sizes[-1] < step_sizes[0] / 2


def test_equal_texts_go_through_layers_that_are_not_steered_once(monkeypatch):
    conditions = [(), *((Add(made_vector(MODEL, layer), 1e-6),) for layer in (1, 0, 0))]
    sizes = [spy(monkeypatch, block) for block in MODEL.blocks]
    texts = write(MODEL, UNLIKE, conditions, Decoding(3, 3, draws=2, temperature=0.01))
    assert all(each == texts[0] for each in texts)
    for layer, lanes in enumerate((3, 3 * 3, 4 * 3)):
        assert sizes[layer][-2:] == [lanes] * 2


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12))
def test_lanes_have_one_condition_and_text_and_find_their_prompts(members):
    """Members of (condition, prompt, text); condition −1 is unsteered."""
    members = sorted(members, key=lambda each: each[0] >= 0)
    owners, prompts = [owner for owner, *_ in members], [each[:2] for each in members]
    lanes = shared_lanes(np.array(owners), np.array([3 * prompt + text for _, prompt, text in members]))
    for one, member in zip(lanes.of_member, members, strict=True):
        assert members[lanes.leaders[one]] == member
    assert len(lanes.leaders) == len(set(members))
    order = list(dict.fromkeys(prompts))
    of_lane = np.array([order.index(prompts[leader]) for leader in lanes.leaders])
    n_prompts = sum(owner < 0 for owner, _ in order)
    bounds = sum(owners[leader] < 0 for leader in lanes.leaders), n_prompts
    x = torch.arange(len(of_lane), dtype=torch.float32)[:, None, None, None].expand(-1, 2, 3, 1)
    prompt = torch.tensor(of_lane, dtype=torch.float32)[:, None, None, None].expand_as(x)
    groups = list(prompt_groups(of_lane, bounds, torch.device("cpu")))
    assert torch.equal(torch.cat([each.by_lane(each.by_prompt(x), 3) for each in groups]), x)
    for each in groups:  # every query is at its own prompt
        numbers = torch.arange(len(order), dtype=torch.float32)[each.prompts, None, None, None]
        at_prompt = each.by_lane(torch.zeros_like(each.by_prompt(x)) + numbers, 3)
        assert torch.equal(at_prompt, prompt[each.lanes])
