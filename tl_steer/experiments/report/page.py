"""Write the report of a run folder: one HTML file that opens without a network."""

from importlib import resources
from pathlib import Path

from markupsafe import Markup

from ..._util.file_io import atomic
from ..._util.validation import checked
from ..results import REPORT, Results
from .evidence import controls_finding, evidence_sections
from .findings import (
    TRAINING_FINDING,
    choice_finding,
    effect_finding,
    mass_finding,
    prompts_finding,
    separation_finding,
    text_finding,
    unreadable_finding,
)
from .sections import Section, pair_sections, question_sections
from .text_rows import text_rows


@checked
def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder, from the folder's files.

    Every text from data or model is escaped, and plotly.js is included.

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
    """The run's results in a few sentences each."""
    if results.experiment.has_prompts:
        sentences = [prompts_finding(results.vectors)]
    else:
        sentences = [separation_finding(results.separation)]
    if results.experiment.questions is not None:
        sentences += _question_findings(results)
    if len(results.texts):
        sentences.append(text_finding(results.texts))
    return sentences


def _question_findings(results: Results) -> list[str]:
    """Findings on the reporting half of the questions, and the choice on the other."""
    rows, sweep = results.half(REPORT), results.experiment.sweep
    shifts, detection = results.shifts(split=REPORT), results.detection(split=REPORT)
    types = {
        "factor": results.factor,
        "signal": sorted(rows.loc[rows["answer"] == 0, results.factor].unique()),
        "is_generated": results.is_generated,
    }
    sentences = [TRAINING_FINDING] if results.experiment.questions.training else []
    sentences += [effect_finding(shifts, detection, each, **types) for each in results.reported]
    if results.against_controls is None:
        sentences.append("No control vectors were run, so any vector of this length might do the same.")
    else:
        sentences += [controls_finding(results.against_controls, each) for each in results.reported]
    if results.score != sweep.score:
        sentences.append(
            "Layer and multiplier were to be chosen by d′, for which too few answers can be read on the half "
            "to choose on: accuracy chooses instead."
        )
    by_operation = results.choices.groupby(["value_name", "vector", "operation"], sort=False)
    sentences += [choice_finding(choices) for _, choices in by_operation]
    if sweep.draws > 1:
        sentences.append(
            f"Each question was answered {sweep.draws} times per condition, at temperature "
            f"{sweep.temperature:g}: numbers of questions here are numbers of answers, "
            "and intervals take the answers to one question together."
        )
    if results.is_generated:
        sentences.append(unreadable_finding(rows, results.reported))
    return [*sentences, *filter(None, [mass_finding(rows, results.chosen)])]


def sections(results: Results) -> list[Section]:
    """The sections between findings and texts."""
    pairs = [] if results.experiment.has_prompts else pair_sections(results)
    questions = question_sections(results) if results.experiment.questions is not None else []
    return [*pairs, *questions, *evidence_sections(results)]
