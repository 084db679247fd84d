"""Coloured tokens: values, colours and hovers against the table, alignment, slider, keyboard, image."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from tl_steer import plots
from tl_steer._util.token_html import STEPS
from tl_steer.plots.style import ink_on

from .conftest import assert_raises

LAYERS = (3, 17, 29)
PROMPT = "ab cd\n"
TOKENS = {  # run: token ids and texts, positions from -3
    "unsteered": [(1, "ab"), (2, " cd"), (3, "\n"), (4, "yes"), (5, " ,")],
    "steered": [(1, "ab"), (2, " cd"), (3, "\n"), (6, "<b>no</b>"), (5, " ,"), (7, "$x & \u202e")],
}


def run_table(name, *, prompt_id=0, seed=0):
    """A table as of `analysis.traces`, with random values; the first token's are a hundred times larger."""
    rng = np.random.default_rng(seed + len(name))
    rows = []
    for layer in LAYERS:
        for position, (token_id, token) in enumerate(TOKENS[name], start=-3):
            cosine, projection = rng.normal(0, 0.2), rng.normal(0, 5) * (100 if position == -3 else 1)
            rows.append((prompt_id, PROMPT, layer, position, token_id, token, projection, cosine))
    columns = ["prompt_id", "prompt", "layer", "position", "token_id", "token", "projection", "cosine"]
    return pd.DataFrame(rows, columns=columns).assign(run=name)


ONE = run_table("steered")
BOTH = pd.concat([run_table("unsteered"), ONE], ignore_index=True)
TOKEN = re.compile(
    r'<span class="tls-token ?([^"]*)" data-row="(\d+)" data-step="(-?\d+)" title="([^"]*)">(.*?)</span>',
    re.DOTALL,
)


def tokens_of(page):
    """Classes, row, step, lines of the title and markup of each token, in the document's order."""
    parts = TOKEN.findall(page.body)
    return [
        (classes, int(row), int(step), title.split("\n"), text) for classes, row, step, title, text in parts
    ]


def data_of(page):
    return json.loads(re.search(r"const data = (.*);\n", page.body)[1])


def limit_of(table, value):
    later = table[table["position"] > table["position"].min()]
    return later[value].abs().quantile(0.99)


def step_of(value, limit):
    return int(np.floor(np.clip(value / limit, -1, 1) * STEPS + 0.5))


@pytest.mark.parametrize("value", ["cosine", "projection"])
@pytest.mark.parametrize("layer", [None, 29])
def test_each_token_has_the_values_of_its_rows(value, layer):
    page = plots.tokens(ONE.sample(frac=1, random_state=1), value=value, layer=layer)
    data, tokens, limit = data_of(page), tokens_of(page), limit_of(ONE, value)
    assert data["layers"] == list(LAYERS)
    assert data["scales"] == [[value, pytest.approx(limit)]]
    for index, each in enumerate(LAYERS):
        rows = ONE[ONE["layer"] == each].sort_values("position")
        np.testing.assert_allclose(data["values"][index], rows[value], rtol=1e-4)
        if each == (layer or 17):
            assert [step for _, _, step, *_ in tokens] == [step_of(each, limit) for each in rows[value]]
            assert [title[2] for *_, title, _ in tokens] == [
                f"{value} {each:.3g}".replace("-", "−") for each in rows[value]
            ]
    assert [title[:2] for *_, title, _ in tokens][2:4] == [
        ["token ⏎, id 3", "position −1"], ["token &lt;b&gt;no&lt;/b&gt;, id 6", "position 0"],
    ]  # fmt: skip
    assert tokens[-1][-1] == '$x<i data-symbol="␣"> </i>&amp;<i data-symbol="␣"> </i>&lt;U+202E&gt;'
    assert [classes for classes, *_ in tokens] == ["", "", "", "tls-new", "", ""]


def test_texts_of_a_prompt_have_equal_positions_in_one_column_and_differences_marked():
    page = plots.tokens(BOTH, facet="run")
    tokens = tokens_of(page)
    assert [row for _, row, *_ in tokens] == [0, 1] * 5 + [1]  # columns of two, the last of one
    positions = [re.match(r"position (.*), (\w+)$", title[1]).groups() for *_, title, _ in tokens]
    names = ["−3", "−2", "−1", "0", "1"]
    expected = [(name, run) for name in names for run in ("unsteered", "steered")] + [("2", "steered")]
    assert positions == expected
    assert ["tls-differs" in classes for classes, *_ in tokens] == [False] * 7 + [True] + [False] * 3
    assert page.body.count('<span class="tls-new">') == 1
    data = data_of(page)
    for index, layer in enumerate(LAYERS):
        rows = BOTH[BOTH["layer"] == layer].set_index(["position", "run"])["cosine"]
        keys = [(int(position.replace("−", "-")), run) for position, run in positions]
        np.testing.assert_allclose(data["values"][index], rows.loc[keys], rtol=1e-4)


def test_differences_have_a_scale_of_their_own():
    difference = ONE.assign(run="difference", difference=True, cosine=ONE["cosine"] / 10)
    page = plots.tokens(pd.concat([ONE, difference]), facet="run")
    data = data_of(page)
    limit = limit_of(ONE, "cosine")
    assert data["scales"] == [
        ["cosine", pytest.approx(limit)], ["difference in cosine", pytest.approx(limit / 10)],
    ]  # fmt: skip
    assert data["scale"] == [0, 1] * 6
    steps = [step for _, _, step, *_ in tokens_of(page)]
    assert steps[::2] == steps[1::2]
    assert page.body.count('<div class="tls-scale">') == 2


def test_prompts_have_headings_with_their_message_and_missing_values_no_colour():
    others = [run_table("steered", prompt_id=number) for number in (4, 7)]
    table = pd.concat(others).assign(label="cd", prompt=PROMPT)
    missing = (table["layer"] == 17) & (table["position"] == 1) & (table["prompt_id"] == 4)
    page = plots.tokens(table[~missing], facet="run")
    assert re.findall('<p class="tls-heading">(.*?)</p>', page.body) == [
        "prompt 4: cd (steered)", "prompt 7: cd (steered)",
    ]  # fmt: skip
    assert len(tokens_of(page)) == 11  # and one without a colour
    assert data_of(page)["values"][1][4] is None
    assert "prompt 4</p>" in plots.tokens(others[0]).body  # its tokens are the prompt
    assert f"prompt 4: {PROMPT}</p>" in plots.tokens(others[0][others[0]["position"] >= 0]).body


def test_equal_tables_give_equal_pages_and_tables_stay_as_they_were():
    before = BOTH.copy()
    pages = [plots.tokens(BOTH, facet="run").body for _ in range(2)]
    assert pages[0] == pages[1]
    pd.testing.assert_frame_equal(BOTH, before)
    names = {re.search('data-tls="(.*?)"', plots.tokens(ONE, layer=layer).body)[1] for layer in LAYERS}
    assert len(names) == 3


def contrast(ink, background):
    def luminance(colour):
        shares = np.array(colour) / 255
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    light, dark = sorted([luminance(ink), luminance(background)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_every_colour_has_legible_text():
    backgrounds = re.findall(r"--step(-?\d+): rgb\((.*?)\); --on\1: #(...);", plots.tokens(ONE).body)
    assert len(backgrounds) >= 2 * (2 * STEPS + 1)  # of light and of dark pages
    for _, background, ink in backgrounds:
        rgb = [float(part) for part in background.split(",")]
        assert contrast([int(digit * 2, 16) for digit in ink], rgb) >= 4.5
    assert (ink_on("rgb(255, 255, 255)"), ink_on("rgb(0, 0, 0)")) == ("#000", "#fff")


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (ONE, {"layer": 4}, "no layer 4; the table has the layers 3, 17, 29"),
        (BOTH, {}, "several rows have the same prompt, layer and position: .* facet="),
        (ONE, {"facet": "sex"}, "plots.tokens: the table lacks the columns sex"),
        (ONE, {"value": "length"}, "got 'length'"),
        (ONE[:0], {}, "has no rows"),
        (pd.concat([ONE.assign(prompt_id=each) for each in range(31)]), {}, "31 prompts, at most 30"),
        (pd.concat([ONE.assign(run=each) for each in range(7)]), {"facet": "run"}, "'run' has 7 values"),
    ],
)
def test_tables_that_cannot_be_drawn_are_rejected(table, options, message):
    assert_raises(message, plots.tokens, table, **options)


STEPS_SHOWN = "all => all.map(each => each.dataset.step === undefined ? null : +each.dataset.step)"
BACKGROUNDS = "all => all.map(each => getComputedStyle(each).backgroundColor)"


@pytest.mark.integration
def test_the_slider_colours_each_layer_as_python_does(opened):
    page = opened(plots.tokens(BOTH, facet="run", layer=3))
    shown, slider = page.locator(".tls-token"), page.get_by_role("slider")
    first = shown.evaluate_all(BACKGROUNDS)
    slider.focus()
    for layer in LAYERS:
        assert page.locator("output").inner_text() == str(layer)
        assert slider.get_attribute("aria-valuetext") == f"layer {layer}"
        expected = [step for _, _, step, *_ in tokens_of(plots.tokens(BOTH, facet="run", layer=layer))]
        assert shown.evaluate_all(STEPS_SHOWN) == expected
        page.keyboard.press("ArrowRight")
    assert shown.evaluate_all(BACKGROUNDS) != first
    assert page.errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.integration
def test_mouse_and_keyboard_show_the_value_at_the_layer_of_the_slider(opened):
    page = opened(plots.tokens(BOTH, facet="run", layer=17))
    tip, shown = page.get_by_role("tooltip"), page.locator(".tls-token")
    row = BOTH.query("run == 'steered' and position == 0").set_index("layer")["cosine"]

    def said(layer):
        value = f"{row[layer]:.3g}".replace("-", "−")
        return f"token <b>no</b>, id 6\nposition 0, steered\ncosine {value} at layer {layer}"

    assert not tip.is_visible()
    shown.nth(7).hover()
    assert tip.inner_text() == said(17)
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")  # to the first text
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert tip.inner_text() == said(29)
    page.keyboard.press("Escape")
    assert not tip.is_visible()


@pytest.mark.integration
def test_colours_follow_the_system_and_the_notebook_s_theme(opened):
    def zero(page):
        page.evaluate("document.querySelector('.tls-token').dataset.step = 0")
        return page.locator(".tls-token").first.evaluate("each => getComputedStyle(each).backgroundColor")

    light, dark = (zero(opened(plots.tokens(ONE), scheme=scheme)) for scheme in ("light", "dark"))
    assert light == "rgb(244, 244, 244)"
    assert dark == "rgb(42, 47, 54)"
    page = opened(plots.tokens(ONE), scheme="dark")
    page.evaluate("document.body.setAttribute('data-jp-theme-light', 'true')")
    assert zero(page) == light


@pytest.mark.integration
def test_the_same_output_twice_in_a_notebook_works_twice(opened, tmp_path):
    page, body = opened(plots.tokens(ONE)), plots.tokens(ONE).body
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8>{body}{body}", encoding="utf-8")
    page.reload()
    for slider in page.get_by_role("slider").all():
        slider.focus()
        page.keyboard.press("Home")
    assert page.locator("output").all_inner_texts() == ["3", "3"]


@pytest.mark.integration
def test_the_image_is_a_png_of_the_requested_width(tmp_path):
    plots.tokens(BOTH, facet="run").write_image(tmp_path / "tokens.png", width=600)
    content = (tmp_path / "tokens.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20]) == 1200
