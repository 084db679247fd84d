"""Steered texts side by side, as an HTML table."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from .._util.html_output import Html, fragment
from .._util.repetition import repeated_parts
from .._util.validation import checked
from .format import counted, escape, layers_order, number, prompt_labels
from .panels import figure_table
from .style import multiplier_colours

N_GRAM = 3  # units of a shaded repetition
LABELS = ("prompt_id", "draw", "prompt", "label")
STYLE = """
.tls-texts { container-type: inline-size; }
.tls-texts .tls-controls { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem 1.6rem;
  margin: .4rem 0; font-size: .85rem; }
.tls-texts fieldset { display: flex; flex-wrap: wrap; gap: .1rem .8rem; border: 0; margin: 0; padding: 0;
  min-width: 0; }
.tls-texts legend { float: left; padding: 0; color: var(--soft); }
.tls-texts label { display: inline-flex; align-items: center; gap: .3rem; }
.tls-texts input[type=search] { background: var(--paper); border: 1px solid var(--soft); border-radius: 4px;
  padding: .1rem .4rem; width: 12rem; max-width: 100%; }
.tls-scroll { overflow: auto; max-height: 85vh; border: 1px solid var(--line); }
.tls-texts table { table-layout: auto; border-collapse: separate; border-spacing: 0; width: 100%; margin: 0;
  font-size: .88rem; line-height: 1.45; }
.tls-texts tr { background: none; }
.tls-texts :is(th, td) { padding: .4rem .6rem; border: 0; border-bottom: 1px solid var(--line);
  min-width: 8.5rem; max-width: none; text-align: left; vertical-align: top; white-space: pre-wrap;
  overflow-wrap: anywhere; background: var(--paper); color: var(--ink); font-weight: 400; }
.tls-texts td, .tls-texts th + th { border-left: 1px solid var(--line); }
.tls-texts th { font-weight: 600; }
.tls-texts thead th { position: sticky; top: 0; z-index: 1;
  border-top: 5px solid var(--colour, transparent); }
.tls-texts th:first-child { position: sticky; left: 0; min-width: 9rem; width: 16%; }
.tls-texts thead th:first-child { z-index: 2; }
.tls-texts :is(th, td).tls-unsteered { background: var(--tint); }
.tls-dose { color: var(--soft); font-weight: 400; white-space: nowrap; }
.tls-texts mark { background: var(--mark); color: inherit; border-radius: 2px; }
.tls-texts .tls-name { display: none; }
@container (max-width: 560px) {
  .tls-texts :is(table, tbody, tbody tr, tbody th, td) { display: block; }
  .tls-texts thead { display: none; }
  .tls-texts tbody td { min-width: 0; }
  .tls-texts tbody th:first-child { position: static; min-width: 0; width: auto; padding-top: .7rem;
    border-top: 3px solid var(--soft); }
  .tls-texts tbody td { border-left: 5px solid var(--colour, var(--line)); }
  .tls-texts .tls-name { display: block; color: var(--soft); font-size: .82rem; font-weight: 600; }
}
@media print {
  .tls-texts .tls-controls { display: none; }
  .tls-scroll { max-height: none; overflow: visible; }
  .tls-texts table { table-layout: fixed; }
  .tls-texts :is(thead, tbody) :is(th, td) { position: static; min-width: 0; }
}
"""
SCRIPT = """
const boxes = [...root.querySelectorAll("input[type=checkbox]")], output = root.querySelector("output");
const rows = [...root.querySelectorAll("tbody tr")], headers = [...root.querySelectorAll("thead th")];
root.addEventListener("input", () => {
  const unchecked = boxes.filter(box => !box.checked);
  const hidden = headers.map(each => unchecked.some(box => each.dataset[box.name] === box.value));
  const text = root.querySelector("input[type=search]").value.toLowerCase();
  const matches = cell => !cell.hidden && cell.lastElementChild.textContent.toLowerCase().includes(text);
  headers.forEach((each, index) => { each.hidden = hidden[index]; });
  for (const row of rows) {
    [...row.children].forEach((cell, index) => { cell.hidden = hidden[index]; });
    row.hidden = ![...row.children].some(matches);
  }
  const count = rows.filter(row => !row.hidden).length;
  output.textContent = count < rows.length ? `${count} of ${rows.length} rows` : "";
});
"""


@dataclass(frozen=True)
class Condition:
    """A column of texts: its name in parts, and its colour; "" for what it lacks."""

    name: str
    layer: str
    setting: str
    colour: str
    dose: str

    @property
    def attributes(self) -> str:
        """Of its cells."""
        classes = "" if self.setting else ' class="tls-unsteered"'
        colour = f' style="--colour: {self.colour}"' if self.colour else ""
        return classes + colour

    @property
    def label(self) -> str:
        """Name and dose, as markup."""
        dose = f' <span class="tls-dose">dose {self.dose}</span>' if self.dose else ""
        return escape(self.name) + dose


@checked
def side_by_side(table: pd.DataFrame) -> Html:
    """A table of texts: a row per prompt (or draw of it), a column per condition.

    Args:
        table: from `texts.side_by_side`.

    Returns:
        `Html`, displayed in notebooks, with all texts, which can be filtered by layer, by multiplier or
        operation, and by a word. `.save(path)` writes a page, `.write_image(path)` a PNG.

    Raises:
        ValueError: the table has no prompts or no column of texts.

    Repetition is shaded: sequences of 3 words, punctuation marks or line ends that occurred before in the
    same text. Their share of all such sequences is 1 − `distinct_3` of `texts.text_damage`.
    The unsteered column is tinted; a header's colour is its multiplier's.
    """
    table = figure_table(table, "side_by_side", "prompt")
    names = [name for name in table.columns if name not in LABELS]
    if not names:
        raise ValueError("plots.side_by_side: the table has no column of texts: expected at least one.")
    if "multiplier" in names:
        raise ValueError("plots.side_by_side: got a sweep's table: put its texts side by side first.")
    conditions = _conditions(names, table.attrs.get("doses", {}))
    count = counted([len(table)], "draw" if "draw" in table else "prompt")
    note = f"{count}, {counted([len(names)], 'condition')}; shaded: repeated within the text"
    head = "".join(_header(each) for each in conditions)
    title = "Texts side by side"
    content = f'''<div class="tls-texts"><p class="tls-title">{title}</p><p class="tls-note">{note}</p>
{_controls(conditions)}<div class="tls-scroll" tabindex="0" role="group" aria-label="{title}"><table>
<thead><tr><th scope="col">prompt</th>{head}</tr></thead>
<tbody>{"".join(_rows(table, conditions))}</tbody></table></div></div>'''
    return fragment(content, title=title, style=STYLE, script=SCRIPT)


def _conditions(names: Sequence[str], doses: dict[str, float]) -> list[Condition]:
    """The parts of the names that `texts.side_by_side` gives: "layer 17+31, +16", "project out"."""
    settings = ["" if name == "unsteered" else name.rpartition(", ")[2] for name in names]
    layers = [re.search(r"(?:^|, )layer (\d+(?:\+\d+)*), ", name) for name in names]
    signs = [re.search(r"([+−][\d.e+-]+)$", setting) for setting in settings]
    multipliers = [float(sign[1].replace("−", "-")) if sign else None for sign in signs]
    colours = multiplier_colours(each for each in multipliers if each is not None)
    return [
        Condition(
            name,
            layer=layer[1] if layer else "",
            setting=setting,
            colour=colours.get(multiplier, ""),
            dose=number(doses[name], ".2g") if doses.get(name) else "",
        )
        for name, layer, setting, multiplier in zip(names, layers, settings, multipliers, strict=True)
    ]


def _controls(conditions: Sequence[Condition]) -> str:
    """Checkboxes for layers and for multipliers, where there are several, and a search field."""
    settings = [each.setting for each in conditions if each.setting]
    is_number = all(re.fullmatch(r"[+−][\d.e+-]+", setting) for setting in settings)
    boxes = _checkboxes(
        "layer", "layer", sorted((each.layer for each in conditions if each.layer), key=layers_order)
    )
    boxes += _checkboxes("setting", "multiplier" if is_number else "operation", settings)
    search = '<label>rows with <input type="search"></label> <output aria-live="polite"></output>'
    return f'<div class="tls-controls">{boxes}{search}</div>'


def _checkboxes(name: str, legend: str, values: Sequence[str]) -> str:
    if len(values := list(dict.fromkeys(values))) < 2:
        return ""
    boxes = "".join(
        f'<label><input type="checkbox" name="{name}" value="{html.escape(value)}" checked>'
        f"{escape(value)}</label>"
        for value in values
    )
    return f"<fieldset><legend>{legend}</legend>{boxes}</fieldset>"


def _header(condition: Condition) -> str:
    parts = {"layer": condition.layer, "setting": condition.setting}
    data = "".join(f' data-{name}="{html.escape(part)}"' for name, part in parts.items() if part)
    return f'<th scope="col"{data}{condition.attributes}>{condition.label}</th>'


def _rows(table: pd.DataFrame, conditions: Sequence[Condition]) -> list[str]:
    draws = table["draw"] if "draw" in table else [None] * len(table)
    texts = [table[condition.name] for condition in conditions]
    rows = []
    for prompt, draw, *said in zip(prompt_labels(table), draws, *texts, strict=True):
        number_of_draw = "" if draw is None else f' <span class="tls-dose">(draw {draw})</span>'
        cells = "".join(_text(*each) for each in zip(conditions, said, strict=True))
        rows.append(f'<tr><th scope="row"><div>{escape(prompt)}{number_of_draw}</div></th>{cells}</tr>')
    return rows


def _text(condition: Condition, text: object) -> str:
    """The cell of a text; in a narrow window it has the condition's name."""
    parts = [("–", False)] if pd.isna(text) else repeated_parts(str(text), N_GRAM)
    said = "".join(f"<mark>{escape(part)}</mark>" if repeats else escape(part) for part, repeats in parts)
    name = f'<div class="tls-name">{condition.label}</div>'
    return f"<td{condition.attributes}>{name}<div>{said}</div></td>"
