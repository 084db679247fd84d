"""The report's sections about the questions: what steering does to their answers."""

from ... import plots
from ...sweeps.sweep_table import UNSTEERED
from ..results import CHOOSE, REPORT, Results
from .report_tables import choice_table, detection_table, optimism_table
from .sections import Section, drawn
from .text_rows import answer_table

WRITTEN = (
    " An answer that cannot be read counts as wrong in the accuracy, and is left out of the share that says "
    "the signal."
)


def question_sections(results: Results) -> list[Section]:
    """Effect by layer and dose, bias or sensitivity, the choice, and where answers are texts, some."""
    made = [_effects(results), _doses(results), _detection(results), _choices(results), _answers(results)]
    return [section for section in made if section is not None]


def _effects(results: Results) -> Section:
    factor, effects = results.experiment.questions.factor, results.effects(overall=True)
    read = "Training claims: these made the vector. " if results.experiment.questions.training else ""
    read += (
        "All questions, together and by kind. A vector that improves the answers raises accuracy in every "
        "panel; one that shifts a bias raises one kind and lowers the other, and all together may not move. "
    )
    figures = [drawn("effectiveness", plots.effectiveness, effects, value="accuracy", facet=factor)]
    if not results.experiment.sweep.is_written:
        figures += [drawn("shift", plots.effectiveness, effects, value="shift", facet=factor)]
        read += (
            "The second figure shows the change of the logit difference, which moves before any answer flips."
        )
    elif results.has_noise and effects["signal_rate"].notna().any():
        figures += [drawn("signal", plots.effectiveness, effects, value="signal_rate", facet=factor)]
        read += "The second figure shows what is said, right or wrong." + WRITTEN
    else:
        read += WRITTEN.strip()
    return Section("effects", "Effect by layer and kind of question", read, figures)


def _doses(results: Results) -> Section | None:
    """`None` where nothing was added (a projection has no dose), or no answer could be read."""
    effects, written = results.effects(), results.experiment.sweep.is_written
    value = "signal_rate" if written else "shift"
    if effects.loc[effects["vector"] != UNSTEERED, "multiplier"].isna().all() or effects[value].isna().all():
        return None
    alike, against = "a bias", "an improvement or its opposite"
    if not results.has_noise:  # every kind's right answer is the signal
        alike, against = "more right answers or fewer", "a preference for one kind's answer"
    read = (
        f"All questions, by kind. Panels that slope alike show {alike}; panels that slope against each "
        f"other, {against}. Grey: control vectors of the same length."
    )
    factor = results.experiment.questions.factor
    figure = drawn("doses", plots.dose_response, effects, value=value, facet=factor)
    return Section("doses", "Effect by dose", read, [figure])


def _detection(results: Results) -> Section | None:
    """`None` where all questions have the same right answer, so that there is no d′."""
    detection = results.detection()
    if detection["d_prime"].isna().all():
        return None
    read = (
        "All questions in the figure. Higher is better at telling the kinds apart; further left is readier "
        "to say the signal, whatever is asked. A strong bias takes d′ toward 0 as well, since all answers "
        "become alike: the table's verdict goes by the AUC where that is known. The table: the chosen layer "
        f"({results.chosen['layers']}), on the half of the questions that had no part in choosing."
    )
    half = results.detection(split=REPORT)
    half = half[half["layers"].isin(["", results.chosen["layers"]])]
    figure = drawn("detection", plots.signal_detection, detection, layer=results.chosen["layers"])
    table = detection_table(half, results.accuracy(split=REPORT))
    return Section("detection", "Bias or sensitivity", read, [figure], [table])


def _choices(results: Results) -> Section:
    read = (
        f"A cell picked for being the best of many is flattered where it was picked (“{CHOOSE}”). Its "
        f"result is the marked row: the same cell on questions that had no part in the choice (“{REPORT}”). "
        "The second table says how much the first would have been flattered."
    )
    tables = [choice_table(results.choices), optimism_table(results.choices)]
    return Section("choice", "The choice of layer and dose", read, tables=tables)


def _answers(results: Results) -> Section | None:
    """`None` where answers are scored, not written."""
    if not results.experiment.sweep.is_written:
        return None
    read = (
        "Every number above rests on how these texts are read. Steering that breaks a text leaves no answer, "
        "which is neither honesty nor its opposite: look here before believing a curve."
    )
    cells = [cell for cell in (results.chosen, results.opposite) if cell is not None]
    table = answer_table(results.half(REPORT), cells, factor=results.experiment.questions.factor)
    return Section("answers", "The answers themselves", read, tables=[table])
