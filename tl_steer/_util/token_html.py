"""Tokens as running text in HTML: background, hover and keyboard; of `preview` and of `plots.tokens`."""

import html
from collections.abc import Iterable

from .characters import visible, visible_character

TOKEN_STYLE = """
.tls-text { margin: .2rem 0 .8rem; line-height: 1.9; }
.tls-token { display: inline-block; max-width: 100%; padding: 0 1px; border-radius: 3px; line-height: 1.45;
  white-space: pre-wrap; overflow-wrap: anywhere; box-shadow: inset 0 0 0 1px var(--line); }
.tls-token i { position: relative; font-style: normal; }
.tls-token i::before { content: attr(data-symbol); position: absolute; left: 0; bottom: -.1em;
  font-size: .7em; opacity: .5; }
mark.tls-token { background: var(--mark); color: inherit; }
.tls-tip { position: absolute; z-index: 2; max-width: 22rem; padding: .3rem .55rem; border-radius: 4px;
  background: var(--ink); color: var(--paper); font-size: .82rem; line-height: 1.4; white-space: pre-line;
  overflow-wrap: anywhere; pointer-events: none; }
"""
TIP = '<div class="tls-tip" role="tooltip" hidden></div>'
# Titles, which work without a script, become tooltips, which also follow the keyboard: one stop of the tab
# key per text, and arrows within it. `valueOf` may add a line.
TOKEN_SCRIPT = """
const tip = root.querySelector(".tls-tip"), tokens = [...root.querySelectorAll(".tls-token")];
let valueOf = () => "";
const rows = new Map();
tokens.forEach((token, index) => {
  const row = token.dataset.row;
  token.tabIndex = rows.has(row) ? -1 : 0;
  rows.set(row, [...(rows.get(row) || []), token]);
  token.dataset.index = index;
  token.dataset.details = token.title.split("\\n").slice(0, 2).join("\\n");
  token.removeAttribute("title");
});
const show = token => {
  tip.textContent = token.dataset.details + valueOf(+token.dataset.index);
  tip.hidden = false;
  const box = token.getBoundingClientRect(), outer = root.getBoundingClientRect();
  const below = box.bottom - outer.top + 4, above = box.top - outer.top - tip.offsetHeight - 4;
  tip.style.left = Math.max(0, Math.min(box.left - outer.left, outer.width - tip.offsetWidth)) + "px";
  tip.style.top = (below + tip.offsetHeight > outer.height && above > 0 ? above : below) + "px";
};
const hide = () => { tip.hidden = true; };
const at = event => event.target.closest(".tls-token");
root.addEventListener("pointerover", event => at(event) ? show(at(event)) : hide());
root.addEventListener("pointerleave", hide);
root.addEventListener("focusin", event => at(event) ? show(at(event)) : hide());
root.addEventListener("focusout", hide);
root.addEventListener("keydown", event => {
  const token = at(event);
  if (!token) return;
  if (event.key === "Escape") return hide();
  const row = rows.get(token.dataset.row), step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  const sibling = {ArrowUp: "previousElementSibling", ArrowDown: "nextElementSibling"}[event.key];
  const next = step ? row[row.indexOf(token) + step] : sibling && token[sibling];
  if (!next || !next.matches(".tls-token")) return;
  event.preventDefault();
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
"""

STEPS = 10  # of a colour scale, on each side of zero
SCALE_STYLE = """
.tls-controls { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem 1.6rem; margin: .2rem 0; }
.tls-layer { display: flex; align-items: center; gap: .5rem; flex: 0 1 24rem; }
.tls-layer input { flex: 1; min-width: 6rem; accent-color: var(--ink); }
.tls-layer output { min-width: 1.6em; font-variant-numeric: tabular-nums; font-weight: 600; }
.tls-scale { display: flex; align-items: center; gap: .4rem; font-size: .82rem; white-space: nowrap;
  color: var(--soft); }
.tls-steps { display: flex; }
.tls-steps span { width: .5rem; height: 1em; background: var(--background); }
.tls .tls-heading { margin: .9rem 0 .1rem; font-size: .88rem; font-weight: 600; overflow-wrap: anywhere; }
.tls-columns { display: flex; flex-wrap: wrap; margin: .3rem 0 .8rem; }
.tls-columns > span { display: flex; flex-direction: column; gap: 1px; max-width: 100%;
  margin-bottom: .55rem; }
.tls-columns .tls-token, .tls-columns .tls-name { display: block; min-height: 1.45em; line-height: 1.45; }
.tls-name { color: var(--soft); padding-right: .6em; }
.tls-columns > .tls-break { flex-basis: 100%; height: 0; margin: 0; }
.tls-new { margin-left: .1em; border-left: 3px solid var(--ink); padding-left: .3em; }
.tls-differs { text-decoration: underline dotted 1.5px; text-underline-offset: 3px; }
@media print { .tls-layer { flex: none; } .tls-layer input { display: none; } }
"""
SCALE_STYLE += "".join(
    f".tls [data-step='{step}'] {{ --background: var(--step{step}); --on: var(--on{step}); }}\n"
    for step in range(-STEPS, STEPS + 1)
)
SCALE_STYLE += ".tls-token[data-step] { background: var(--background); color: var(--on); }\n"
# Layers on a slider: `data` is a constant defined before.
SCALE_SCRIPT = """
const slider = root.querySelector("input"), output = root.querySelector("output");
const format = value => String(+value.toPrecision(3)).replace("-", "−");
const layer = () => slider ? +slider.value : 0;
valueOf = index => {
  const value = data.values[layer()][index], name = data.scales[data.scale[index]][0];
  return value === null ? "" : `\\n${name} ${format(value)} at layer ${data.layers[layer()]}`;
};
if (slider) slider.addEventListener("input", () => {
  tokens.forEach((token, index) => {
    const value = data.values[layer()][index], share = value / data.scales[data.scale[index]][1];
    if (value === null) delete token.dataset.step;
    else token.dataset.step = Math.floor(Math.max(-1, Math.min(1, share)) * STEPS + 0.5);
  });
  output.textContent = data.layers[layer()];
  slider.setAttribute("aria-valuetext", `layer ${data.layers[layer()]}`);
});
""".replace("STEPS", str(STEPS))


def token_span(
    text: str,
    details: Iterable[str],
    *,
    step: str = "",
    row: int = 0,
    classes: str = "",
    is_selected: bool = False,
) -> str:
    """A token with its background and hover.

    Args:
        text: of the token.
        details: two lines of the hover, and perhaps a third, with a value that the script replaces.
        step: names a colour of a scale; "" for none.
        row: number of its text, within which the arrow keys move.
        classes: besides `tls-token`.
        is_selected: marked by a `mark` element.
    """
    tag = "mark" if is_selected else "span"
    attributes = f' data-step="{step}"' if step else ""
    title = html.escape("\n".join(details))
    return (
        f'<{tag} class="{f"tls-token {classes}".strip()}" data-row="{row}"{attributes} title="{title}">'
        f"{_markup(text)}</{tag}>"
    )


def token_line(text: str, token_id: int | str) -> str:
    """The first line of a token's hover."""
    return f"token {visible(text)}, id {token_id}"


def running_text(spans: Iterable[str], texts: Iterable[str]) -> str:
    """Tokens as a text, with its line ends."""
    lines = (span + "<br>" * ends_line(text) for span, text in zip(spans, texts, strict=True))
    return f'<div class="tls-text">{"".join(lines)}</div>'


def ends_line(text: str) -> bool:
    """Whether a token ends with a line end."""
    return text.endswith("\n")


def _markup(text: str) -> str:
    """A token with a symbol in each space; a selection that is copied has the spaces only."""
    symbols = (html.escape(visible_character(each, index == 0)) for index, each in enumerate(text))
    return "".join(
        f'<i data-symbol="{symbol}"> </i>' if character == " " else symbol
        for character, symbol in zip(text, symbols, strict=True)
    )
