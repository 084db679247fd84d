"""Intervals keep the rows of a group together: each against a loop over groups."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import tl_steer as ts
from tl_steer import statistics
from tl_steer.analysis import mean_projections, mean_traces, projections, separation
from tl_steer.directions import mean_difference
from tl_steer.evaluation import effectiveness, embedding_effect, mean_damage, steerability
from tl_steer.evaluation._choose import measure_of
from tl_steer.evaluation._effectiveness import answer_shifts, flips
from tl_steer.sweeps.selection import best_conditions
from tl_steer.texts import preference, side_by_side, text_damage
from tl_steer.texts.judge_prompts import answer_pairs

from .conftest import assert_raises, make_pairs
from .sweep_tables import NAN, condition, table_of, unsteered
from .test_evaluation_tables import row_of

GROUPS = np.repeat(np.arange(20), [1, 2, 4, 3] * 5)  # 50 rows
PERSONAS = ("honest", "dishonest")


def by_group(values, groups):
    """The known values of each group that has any."""
    values = pd.Series(np.asarray(values, float)).dropna()
    return [part.to_list() for _, part in values.groupby(np.asarray(groups)[values.index], sort=False)]


def t_by_loop(values, groups):
    """Mean, low and high, and the number of groups that counts."""
    parts = by_group(values, groups)
    n = sum(map(len, parts))
    mean = sum(map(sum, parts)) / n
    variance = sum((sum(part) - len(part) * mean) ** 2 / (1 - len(part) / n) for part in parts) / n**2
    counted = n**2 / sum(len(part) ** 2 for part in parts)
    half = stats.t.ppf(0.975, counted - 1) * variance**0.5
    return mean, mean - half, mean + half, counted


def wilson_by_loop(values, groups):
    rate, low, high, counted = t_by_loop(values, groups)
    rows = np.array([v for v in values if not np.isnan(v)])
    effective = counted if len(set(rows)) == 1 else len(rows)
    if high > low:
        alone = stats.t.ppf(0.975, len(rows) - 1) * stats.sem(rows)
        effective *= min(1, (alone / ((high - low) / 2)) ** 2)
    z = stats.norm.ppf(0.975)
    roots = np.roots([1 + z**2 / effective, -2 * rate - z**2 / effective, rate**2])
    return rate, *np.sort(roots.real)


def ends(row, name):
    return pytest.approx([row[f"{name}{end}"] for end in ("", "_low", "_high")], nan_ok=True)


def drawn(seed=0, distribution="normal"):
    """Rows that partly agree within their group; three are missing."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=20)[GROUPS], rng.normal(size=50)
    values = shared + own if distribution == "normal" else (shared + own > -0.5).astype(float)
    values[[3, 11, 40]] = NAN
    return values


@pytest.mark.parametrize("distribution", ["normal", "binary"])
def test_intervals_of_several_samples_are_those_of_a_loop_over_groups(distribution):
    order = np.random.default_rng(1).permutation(100)
    values = np.concatenate([drawn(0, distribution), drawn(1, distribution)])[order]
    sample, group = (np.concatenate(each)[order] for each in ([0 * GROUPS, 0 * GROUPS + 1], [GROUPS, GROUPS]))
    interval, loop = {
        "normal": (statistics.mean_interval, t_by_loop),
        "binary": (statistics.rate_interval, wilson_by_loop),
    }[distribution]
    result = np.stack(interval(values, sample, statistics.nested(sample, group)), 1)
    for number in (0, 1):
        expected = loop(values[sample == number], group[sample == number])
        assert result[number] == pytest.approx(expected[:3], rel=1e-12)


def test_with_a_row_per_group_they_are_scipys():
    values = drawn()
    known = values[~np.isnan(values)]
    one, rows = np.zeros(50, int), np.random.default_rng(0).permutation(50)
    oracle = stats.ttest_1samp(known, 0).confidence_interval(0.95)
    assert np.ravel(statistics.mean_interval(values, one, rows)) == pytest.approx([known.mean(), *oracle])
    right = drawn(distribution="binary")
    count = int(np.nansum(right))
    oracle = stats.binomtest(count, 47).proportion_ci(method="wilson")
    assert np.ravel(statistics.rate_interval(right, one, rows)) == pytest.approx([count / 47, *oracle])


@pytest.mark.parametrize("copies", [2, 4])
def test_copies_of_a_row_are_one_row(copies):
    values, right = drawn(3), drawn(3, "binary")
    one, rows = np.zeros(50, int), np.arange(50)
    alone = statistics.mean_interval(values, one, rows)
    copied = (np.repeat(each, copies) for each in (values, one, rows))
    assert np.ravel(statistics.mean_interval(*copied)) == pytest.approx(np.ravel(alone))
    rate, low, high = statistics.rate_interval(right, one, rows)
    copied = [np.repeat(each, copies) for each in (right, one, rows)]
    again, lower, higher = statistics.rate_interval(*copied)
    assert again == pytest.approx(rate)
    # how many rows are independent is estimated too
    assert 1 < (higher - lower) / (high - low) < 1.03
    certain = statistics.rate_interval(np.ones(50 * copies), *copied[1:])
    assert np.ravel(certain) == pytest.approx(np.ravel(statistics.rate_interval(np.ones(50), one, rows)))


def test_few_groups_have_wide_intervals_and_balanced_ones_are_not_certain():
    one, values = np.zeros(4, int), np.array([0.0, 1.0, 1.0, 1.0])
    result = np.ravel(statistics.mean_interval(values, one, one))
    assert result == pytest.approx([0.75, NAN, NAN], nan_ok=True)
    alone = stats.binomtest(1, 1).proportion_ci(method="wilson")
    assert np.ravel(statistics.rate_interval(np.ones(4), one, one)) == pytest.approx([1, *alone])
    for interval in (statistics.mean_interval, statistics.rate_interval):
        assert np.isnan(interval(values * NAN, one, np.arange(4))).all()
    assert np.shape(statistics.mean_interval(values[:0], one[:0], one[:0])) == (3, 0)
    balanced = np.tile([0.0, 1.0], 20)
    _, low, high = statistics.rate_interval(balanced, np.zeros(40, int), np.arange(40) // 2)
    assert (low[0], high[0]) == pytest.approx(stats.binomtest(20, 40).proportion_ci(method="wilson"))


def test_a_difference_is_welchs_of_separate_groups_and_paired_of_shared_ones():
    first, second = np.random.default_rng(0).normal(size=(2, 9))
    one, nothing = np.zeros(18, int), np.full(9, NAN)
    sides = np.concatenate([first, nothing]), np.concatenate([nothing, second])
    for group, test in (
        (np.arange(18), stats.ttest_ind(first, second, equal_var=False)),
        (np.tile(np.arange(9), 2), stats.ttest_rel(first, second)),
    ):
        result = np.ravel(statistics.difference_interval(*sides, one, group))
        assert result == pytest.approx([first.mean() - second.mean(), *test.confidence_interval(0.95)])
    twice = [np.repeat(each, 3) for each in (*sides, one, group)]
    assert np.ravel(statistics.difference_interval(*twice)) == pytest.approx(result)


def choices_of(logits, rng):
    """Choices that follow the logit differences; a tenth is unreadable."""
    unreadable = rng.random(len(logits)) < 0.1
    return [None if each else int(logit <= 0) for logit, each in zip(logits, unreadable, strict=True)]


def grouped_sweep(seed=0):
    """The unsteered condition, two multipliers and a projection; prompts of a group partly agree."""
    rng = np.random.default_rng(seed)
    answers = rng.integers(0, 2, 50)

    def rows(mean, rows_of=condition, **columns):
        logits = mean + rng.normal(size=20)[GROUPS] + rng.normal(size=50)
        groups = [f"claim {group}" for group in GROUPS]
        return rows_of(choices_of(logits, rng), answers, logits=logits, group=groups, **columns)

    steered = rows(0, unsteered), rows(0.5), rows(-0.5, multiplier=-1.0)
    projected = rows(0.2, operation="project_out", multiplier=NAN)
    return table_of(*steered, projected).sample(frac=1, random_state=seed)


def outcomes(rows, before):
    """The value of each prompt of a condition, by outcome."""
    result = []
    unsteered_rows = before.loc[rows["prompt_id"]].to_dict("records")
    for row, then in zip(rows.to_dict("records"), unsteered_rows, strict=True):
        choice, known = row["choice"], not pd.isna(row["choice"])
        both = known and not pd.isna(then["choice"])
        result.append({
            "accuracy": float(known and choice == row["answer"]),
            "signal_rate": float(choice == 0) if known else NAN,
            "flipped": float(choice != then["choice"]) if both else NAN,
            "logit_difference": row["logit_difference"],
            "shift": row["logit_difference"] - then["logit_difference"],
        })  # fmt: skip
    return pd.DataFrame(result).assign(group=rows["group"].to_numpy())


@pytest.mark.parametrize("by", [[], ["topic"], ["split"]])
def test_effectiveness_and_flips_take_groups_whole(by):
    table = grouped_sweep()
    before = table[table["vector"] == "none"].set_index("prompt_id")
    result, flipped = effectiveness(table, by=by), flips(table, by)
    assert len(result) == len(flipped) == 4 * 2 ** len(by)
    for row, flip in zip(result.to_dict("records"), flipped.to_dict("records"), strict=True):
        same = [table[name].isna() if row[name] != row[name] else table[name] == row[name]
                for name in ("vector", "operation", "multiplier", *by)]  # fmt: skip
        counted = outcomes(table[np.logical_and.reduce(same)], before)
        for name in ("accuracy", "signal_rate"):
            assert wilson_by_loop(counted[name], counted["group"]) == ends(row, name)
        for name in ("logit_difference", "shift"):
            assert t_by_loop(counted[name], counted["group"])[:3] == ends(row, name)
        assert wilson_by_loop(counted["flipped"], counted["group"]) == ends(flip, "flipped")
        assert flip["flipped"] == pytest.approx(row["flipped"])


def test_a_group_that_is_split_by_a_factor_is_one_in_each_level():
    """One prompt of each claim per topic: within a topic every prompt is alone."""
    table = grouped_sweep()
    grouped, ungrouped = table.assign(group=table["prompt_id"] // 2), table.drop(columns="group")
    by_topic = (effectiveness(each, by="topic") for each in (grouped, ungrouped))
    pd.testing.assert_frame_equal(*by_topic)
    assert not np.allclose(*(effectiveness(each)["shift_low"] for each in (grouped, ungrouped)))


def test_embedding_effect_and_mean_damage_take_groups_whole():
    table = grouped_sweep().assign(embedding_score=lambda rows: rows["logit_difference"])
    result = row_of(embedding_effect(table), multiplier=1.0)
    rows = table[table["multiplier"] == 1.0]
    assert t_by_loop(rows["embedding_score"], rows["group"])[:3] == ends(result, "score")
    damaged = table.assign(kl=table["logit_difference"] ** 2, unreadable=table["choice"].isna())
    result = row_of(mean_damage(damaged), multiplier=1.0)
    assert t_by_loop(rows["logit_difference"] ** 2, rows["group"])[:3] == ends(result, "kl")
    assert wilson_by_loop(rows["choice"].isna().astype(float), rows["group"]) == ends(result, "unreadable")


def test_preference_takes_groups_whole():
    rng = np.random.default_rng(0)
    table = grouped_sweep().query("multiplier == 1").assign(against="opposite", reply="", cached=False)
    table = table.assign(text="a", other_text="b")
    shared = rng.normal(size=20)[table["group"].str.split().str[1].astype(int)]
    orders = []
    for first in ("positive", "negative"):
        signs = shared + rng.normal(size=50)
        verdict = np.select([signs > 0.3, signs < -0.6, signs < 0.2], ["positive", "negative", "tie"], "?")
        orders.append(table.assign(first_shown=first, verdict=np.where(verdict == "?", None, verdict)))
    both = pd.concat(orders)
    row, without = (preference(each).loc[0] for each in (both, both.drop(columns="group")))
    result = []
    for _, pair in both.groupby("prompt_id"):
        votes = [{"positive": 1, "negative": 0, "tie": 0.5}.get(each, NAN) for each in pair["verdict"]]
        agreed = votes[0] == votes[1] != 0.5
        decided = pair[pair["verdict"].isin(["positive", "negative"])]
        result.append({
            "preference": NAN if np.isnan(votes).any() else votes[0] if agreed else 0.5,
            "win_rate": votes[0] if agreed else NAN,
            "first_share": decided["verdict"].eq(decided["first_shown"]).mean(),
            "group": pair["group"].iloc[0],
        })  # fmt: skip
    result = pd.DataFrame(result)
    for name in ("preference", "win_rate", "first_share"):
        assert wilson_by_loop(result[name], result["group"]) == ends(row, name)
    assert without["preference_low"] > row["preference_low"]


def test_steerability_draws_groups_and_copies_of_prompts_change_nothing():
    table = grouped_sweep(1)
    alone = table.assign(group=table["prompt_id"])
    copies = pd.concat([alone, alone.assign(prompt_id=table["prompt_id"] + 50)])
    by_text = copies.drop(columns="group")
    own_texts = by_text.assign(prompt=copies["prompt_id"].map("prompt {}".format))
    tables = alone, copies, by_text, copies.assign(group=copies["prompt_id"]), own_texts, table
    one, two, *same, own, result = (steerability(each, resamples=4000).loc[0] for each in tables)
    for name in ("slope", "slope_per_dose"):
        assert [one[f"{name}{end}"] for end in ("", "_low", "_high")] == ends(two, name)
    for each in same:
        pd.testing.assert_series_equal(each, two)
    assert own["slope_high"] - own["slope_low"] < 0.8 * (two["slope_high"] - two["slope_low"])
    slopes = ts.evaluation.prompt_slopes(table)
    _, low, high, _ = t_by_loop(slopes["slope"], slopes["group"])
    assert [result["slope_low"], result["slope_high"]] == pytest.approx([low, high], abs=0.05 * (high - low))
    negative = (slopes["slope"] < 0).astype(float)
    assert wilson_by_loop(negative, slopes["group"]) == ends(result, "anti_steerable")


def test_a_function_scores_draws_of_whole_groups_with_both_answers():
    """One group of two rows has answer 1: without strata, many draws would lack it."""
    table = grouped_sweep()
    table["answer"] = (table["group"] == "claim 1").astype("Int64")
    sizes = table[table["multiplier"] == 1.0].groupby("group").size()
    seen = []

    def accuracy(rows):
        seen.append(rows)
        return read_right(rows)

    measure_of(accuracy)[0](table, 50, 0)
    assert len({len(rows) for rows in seen}) > 1
    for rows in seen:
        assert set(rows["answer"]) == {0, 1}
        counts = rows.groupby("group").size()
        assert (counts % sizes.loc[counts.index] == 0).all()


def drawn_sweep():
    """Thirty prompts with three partly similar draws and texts each, steered and unsteered."""
    rng = np.random.default_rng(0)
    prompt, draw = (each.ravel() for each in np.indices((30, 3)))
    answers, shared = prompt % 2, rng.normal(size=30)[prompt]
    labels = {
        "prompt_id": prompt, "draw": draw, "prompt": [f"prompt {row}" for row in prompt],
        "topic": prompt % 3, "split": np.where(prompt % 4 < 2, "choose", "report"), "logit_difference": NAN,
    }  # fmt: skip

    def rows(mean, rows_of=condition, **columns):
        logits = mean * (1 - 2 * answers) + shared + rng.normal(size=90)
        choices = choices_of(logits, rng)
        texts = ["x" * number + str(number) for number in rng.integers(0, 5, 90)]
        return rows_of(choices, answers, text=texts, **labels, **columns)

    steered = [{"layers": layers, "multiplier": mean} for layers in "34" for mean in (-0.5, 0.5)]
    conditions = [rows(0, unsteered), *(rows(each["multiplier"], **each) for each in steered)]
    controls = [rows(0, **each, vector=f"random {number}") for number in range(3) for each in steered]
    return table_of(*conditions, *controls)


def judged(table):
    rng, sides = np.random.default_rng(0), ["positive", "negative"]
    rows = table[table["multiplier"] == 0.5].assign(against="opposite", reply="", cached=False, other_text="")
    verdicts = [rng.choice([*sides, "tie"], len(rows)) for _ in sides]
    return table_of(*(rows.assign(first_shown=side, verdict=each)
                      for side, each in zip(sides, verdicts, strict=True)))  # fmt: skip


def scored_tables(table):
    """Every table that is made of texts, without the columns that name prompts."""
    steered = table[~table["control"]]
    result = {
        "effectiveness": effectiveness(table, by="topic"),
        "flips": flips(table, []),
        "signal_detection": ts.signal_detection(table, resamples=50),
        "answer_shifts": answer_shifts(table, by="topic", resamples=50),
        "embedding": embedding_effect(table.assign(embedding_score=table["text"].str[-1].astype(float))),
        "damage": mean_damage(table.assign(words=table["text"].str.len())),
        "preference": preference(judged(table)),
        "best": best_conditions(steered),
        "texts alone": best_conditions(steered.assign(choice=pd.NA, answer=pd.NA)),
        "pairs": answer_pairs(table, "opposite"),
        "against unsteered": answer_pairs(table, "unsteered"),
        "text damage": text_damage(table),
        "texts": side_by_side(table[table["layers"].isin(["", "3"])]),
    }
    scores = ("accuracy", "readable_accuracy", "d_prime", "flipped")
    for score in (*scores, read_right):
        options = {"value": score, "resamples": 50, "splits": 4}
        name = getattr(score, "__name__", score)
        result[f"choose {name}"] = ts.choose(table, on="choose", report="report", **options)
    result |= {f"controls {score}": ts.against_controls(table, value=score) for score in scores}
    naming = ["prompt_id", "draw", "group"]
    return {name: each.drop(columns=naming, errors="ignore") for name, each in result.items()}


def read_right(rows):
    return float(rows["choice"].eq(rows["answer"]).fillna(False).mean())


def test_draws_of_a_prompt_count_as_its_group_everywhere():
    """As prompts of their own in one group, or of one text, they give the same tables; else others."""
    table = drawn_sweep()
    table = table.sample(frac=1, random_state=0).sort_values(["multiplier", "vector"], kind="stable")
    same_text = table.drop(columns="draw").assign(prompt_id=3 * table["prompt_id"] + table["draw"])
    alone = same_text.assign(prompt=table["prompt"] + " " + table["draw"].astype(str))
    result, expected = scored_tables(table), scored_tables(alone.assign(group=table["prompt_id"]))
    repeated = scored_tables(same_text)
    for name, rows in result.items():
        texts = rows.filter(["prompt"])  # of the copies their own
        pd.testing.assert_frame_equal(rows, expected[name].assign(**texts), obj=name)
        pd.testing.assert_frame_equal(rows, repeated[name], obj=name)
    independent = scored_tables(alone)
    for name, column in (
        ("effectiveness", "accuracy_low"), ("flips", "flipped_low"), ("signal_detection", "hit_rate_low"),
        ("signal_detection", "d_prime_change_low"), ("answer_shifts", "shift_low"),
        ("embedding", "shift_low"), ("damage", "words_low"), ("preference", "preference_low"),
        ("choose accuracy", "low"), ("choose accuracy", "change_low"), ("choose d_prime", "change_low"),
        ("choose readable_accuracy", "low"), ("choose readable_accuracy", "change_low"),
        ("choose flipped", "low"), ("choose read_right", "low"), ("controls accuracy", "effect_low"),
    ):  # fmt: skip
        assert not np.allclose(result[name][column], independent[name][column], equal_nan=True), name


def test_hit_rates_and_readable_accuracy_take_groups_whole():
    table = drawn_sweep().query("~control")
    here = "multiplier == 0.5 and layers == '3'"
    rows = table.query(here).dropna(subset="choice")
    row = ts.signal_detection(table, resamples=5).query(here).iloc[0]
    for answer, name in ((0, "hit_rate"), (1, "false_alarm_rate")):
        some = rows[rows["answer"] == answer]
        assert wilson_by_loop(some["choice"].eq(0).astype(float), some["prompt_id"]) == ends(row, name)
    row = measure_of("readable_accuracy")[0](table, 50, 0).query(here).iloc[0]
    expected = wilson_by_loop(rows["choice"].eq(rows["answer"]).astype(float), rows["prompt_id"])
    assert expected == pytest.approx(list(row[["value", "low", "high"]]))


def test_repeated_draws_and_slopes_of_texts_are_rejected():
    table = drawn_sweep()
    assert_raises("prompt_id 0 is twice in the condition draw=0", effectiveness, pd.concat([table, table]))
    assert_raises("slopes need a sweep with measure='choice'", steerability, table)


def test_mean_projections_take_groups_or_else_pairs_whole():
    rng, shared = np.random.default_rng(0), np.random.default_rng(1).normal(size=(20, 1, 4))
    sides = rng.normal(size=(2, 50, 1, 4)) + shared[GROUPS]
    sides[0] += 0.5
    pairs = make_pairs(*sides, factors=pd.DataFrame({"group": GROUPS, "topic": np.arange(50) % 2}))
    table = projections(pairs, mean_difference(pairs))
    values = {side: rows.set_index("pair")[["projection", "cosine"]] for side, rows in table.groupby("side")}
    values["difference"] = values["positive"] - values["negative"]
    means = mean_projections(table.sample(frac=1, random_state=0)).set_index("side")
    for side, rows in values.items():
        for name in ("projection", "cosine"):
            assert t_by_loop(rows[name], GROUPS)[:3] == ends(means.loc[side], name)
    # Both sides of a pair are in each topic.
    for unit, each in (("group", table), ("pair", table.drop(columns="group"))):
        for row in mean_projections(each, by="topic").to_dict("records"):
            rows = table[table["topic"] == row["topic"]]
            assert t_by_loop(rows["projection"], rows[unit])[:3] == ends(row, "projection")


def test_the_spread_s_interval_takes_groups_whole():
    """Four copies of each row in one group: the interval of one row each, up to the SD's own n − 1."""
    rng = np.random.default_rng(0)
    values, one = rng.normal(size=40), np.zeros(160, int)
    alone = np.ravel(statistics.spread_interval(values, one[:40], np.arange(40)))
    copies, groups = np.repeat(values, 4), np.repeat(np.arange(40), 4)
    grouped = np.ravel(statistics.spread_interval(copies, one, groups))
    assert grouped == pytest.approx(alone * np.sqrt(39 / 40 * 160 / 159))
    ungrouped = np.ravel(statistics.spread_interval(copies, one, np.arange(160)))
    assert ungrouped[2] - ungrouped[1] < 0.6 * (alone[2] - alone[1])


def test_separation_takes_groups_whole():
    sides = np.random.default_rng(0).normal(size=(2, 50, 2, 4))
    sides[0] += 0.3 * np.random.default_rng(1).normal(1, 1, size=(20, 1, 4))[GROUPS]
    pairs = make_pairs(*sides, factors=pd.DataFrame({"group": GROUPS}))
    vectors = mean_difference(pairs)
    table = separation(pairs, estimator=lambda _: vectors, shuffles=0)
    right = np.einsum("pld,ld->lp", sides[0] - sides[1], vectors.values.numpy()) > 0
    for row, values in zip(table.to_dict("records"), right.astype(float), strict=True):
        assert wilson_by_loop(values, GROUPS) == ends(row, "paired_accuracy")


def traces(**columns):
    """Rows as from `projection_traces`, with one position per prompt."""
    rows = {"prompt": "", "layer": 3, "position": 0, "token_id": 7, "token": "x", "cosine": 0.0}
    return pd.DataFrame(rows | columns).sample(frac=1, random_state=0)


def test_traces_take_groups_whole_within_and_across_levels():
    prompt, layer = np.repeat(np.arange(50), 2), np.tile([3, 5], 50)
    group = GROUPS[prompt]
    projection = np.random.default_rng(0).normal(size=100) + 2 * np.cos(group)
    persona = np.where(prompt % 3 > 0, *PERSONAS)
    table = traces(prompt_id=prompt, layer=layer, persona=persona, group=group, projection=projection)
    means = mean_traces(table, by="persona", difference=PERSONAS)
    for row in means.to_dict("records"):
        here = table[table["layer"] == row["layer"]]
        if not row["difference"]:
            rows = here[here["persona"] == row["persona"]]
            assert t_by_loop(rows["projection"], rows["group"])[:3] == ends(row, "projection")
            continue
        sides = [here[here["persona"] == each].set_index("group")["projection"] for each in PERSONAS]
        variance = 0.0
        for number in range(20):
            part = 0.0
            for sign, side in zip((1, -1), sides, strict=True):
                own = side[side.index == number]
                part += sign * (own - side.mean()).sum() / len(side) / (1 - len(own) / len(side)) ** 0.5
            variance += part**2
        counted = [len(side) ** 2 / (side.groupby(level=0).size() ** 2).sum() for side in sides]
        half = stats.t.ppf(0.975, min(counted) - 1) * variance**0.5
        mean = sides[0].mean() - sides[1].mean()
        assert [mean, mean - half, mean + half] == ends(row, "projection")


def test_differences_within_pairs_take_groups_whole():
    pair, values = np.tile(np.arange(50), 2), np.random.default_rng(0).normal(size=100)
    persona = np.repeat(PERSONAS, 50)
    table = traces(prompt_id=range(100), persona=persona, group=GROUPS[pair], pair=pair, projection=values)
    means = mean_traces(table, by="persona", difference=PERSONAS, pair="pair")
    assert t_by_loop(values[:50] - values[50:], GROUPS)[:3] == ends(means.iloc[-1], "projection")
