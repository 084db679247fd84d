"""A run folder as one HTML file that opens without a network."""

from importlib import resources
from pathlib import Path

from markupsafe import Markup

from ..._util.file_io import atomic
from ..._util.validation import checked
from ..results import REPORT, Results
from .effects import effect_finding
from .evidence import evidence_sections
from .evidence_findings import controls_finding
from .findings import (
    TRAINING_FINDING,
    choice_finding,
    mass_finding,
    prompts_finding,
    separation_finding,
    text_finding,
    unreadable_finding,
)
from .pair_sections import pair_sections
from .question_sections import question_sections
from .sections import Section
from .text_rows import text_rows


@checked
def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder, from the files that lie there.

    Every text from data or model is escaped, and plotly.js is inside, so that the file can be opened, kept
    and sent on its own.

    Raises:
        FileNotFoundError: a file of a run is missing.
    """
    path = Path(folder) / "report.html"
    page = report_html(Results.load(folder))
    with atomic(path) as scratch:
        scratch.write_text(page, encoding="utf-8")
    return path


def report_html(results: Results) -> str:
    """The report of a run as HTML text."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        (resources.files(__package__) / "report.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        experiment=results.experiment,
        versions=results.versions,
        vectors=results.vectors,
        hook=results.vectors.hook,
        findings=findings(results),
        sections=sections(results),
        texts=text_rows(results.texts),
        plotly=Markup(get_plotlyjs()),
    )


def findings(results: Results) -> list[str]:
    """What the run found, a few sentences each."""
    found = [
        prompts_finding(results.vectors)
        if results.experiment.has_prompts
        else separation_finding(results.separation)
    ]
    if results.experiment.questions is not None:
        found += _question_findings(results)
    if len(results.texts):
        found.append(text_finding(results.texts))
    return found


def _question_findings(results: Results) -> list[str]:
    """All of the half of the questions that had no part in choosing, but for the choice itself."""
    factor, rows = results.experiment.questions.factor, results.half(REPORT)
    shifts, detection = results.shifts(split=REPORT), results.detection(split=REPORT)
    kinds = {
        "factor": factor,
        "signal": sorted(rows.loc[rows["answer"] == 0, factor].unique()),
        "written": results.experiment.sweep.is_written,
    }
    cells = [cell for cell in (results.chosen, results.opposite) if cell is not None]
    found = [TRAINING_FINDING] if results.experiment.questions.training else []
    found += [effect_finding(shifts, detection, cell, **kinds) for cell in cells]
    if results.against_controls is None:
        found.append("No control vectors were run, so any vector of this length might do the same.")
    else:
        found += [controls_finding(results.against_controls, cell) for cell in cells]
    if results.score != results.experiment.sweep.score:
        found.append(
            "Layer and multiplier were to be chosen by d′, for which too few answers can be read on the half "
            "to choose on: accuracy chooses instead."
        )
    by_operation = results.choices.groupby(["score", "vector", "operation"], sort=False)
    found += [choice_finding(choices) for _, choices in by_operation]
    if (draws := results.experiment.sweep.draws) > 1:
        found.append(
            f"Each question was answered {draws} times per condition, at temperature "
            f"{results.experiment.sweep.temperature:g}: numbers of questions here are numbers of answers, "
            "and intervals take the answers to one question together."
        )
    if kinds["written"]:
        found.append(unreadable_finding(rows, cells))
    return [*found, *filter(None, [mass_finding(rows, results.chosen)])]


def sections(results: Results) -> list[Section]:
    """The parts of the report between what was found and the texts."""
    made = [] if results.experiment.has_prompts else pair_sections(results)
    made += question_sections(results) if results.experiment.questions is not None else []
    return made + evidence_sections(results)
