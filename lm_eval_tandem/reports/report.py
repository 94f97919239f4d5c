"""A report of any set of runs: every table and figure of the paper that they can fill, in every format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_tandem import _paths
from lm_eval_tandem.digits import decimals, listed
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.formats import html, latex, markdown, spreadsheet, svg
from lm_eval_tandem.reports.sections import accuracy, figures, importance, judge, latency, pairs, routing
from lm_eval_tandem.reports.sources import ledgers, runs
from lm_eval_tandem.reports.sources.pairing import studies
from lm_eval_tandem.reports.sources.runs import Run, reason
from lm_eval_tandem.reports.sources.study import Study, model_name
from lm_eval_tandem.reports.table import Report

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

COLLECTED = "collected.parquet"
FORMATS = (".md", ".tex", ".html")


def report(
    folders: Sequence[Path],
    title: str = "Results",
    metric: str | None = None,
    by: str | None = None,
    collected: Path | None = None,
    classifier: str | None = None,
) -> Report:
    """Everything that the runs below the folders show.

    metric, by: see `runs.read`. collected: what `lm-eval-tandem collect` wrote (default: a collected.parquet below the
        folders). classifier: folder, or name of one that ships (default: the cascade's, where it is found unchanged).

    Raises
    ------
    ArgumentError
        The folders cannot be read, or hold what cannot be compared.
    ClassifierError
        The classifier or the collected data cannot be read.
    """
    found = ledgers.joined(runs.read(folders, metric, by), folders)
    made = studies(found)
    fitted = loaded_judge(classifier, made, folders)
    data = sorted(file for folder in folders for file in folder.rglob(COLLECTED)) if collected is None else [collected]
    sections = (
        figures.trade_off(made, fitted),
        accuracy.section(made),
        accuracy.compared(made),
        figures.guidance(made),
        pairs.section(made),
        pairs.dollars(made),
        pairs.transfer(made),
        routing.shares(made),
        routing.failures(made),
        judge.stages(made, fitted),
        judge.inputs(made),
        judge.unified(made),
        importance.section(data, fitted, collected is not None),
        figures.entropy(made),
        latency.section(folders),
    )
    return Report(title, tuple(headlines(made)), sections, tuple(circumstances(found)))


def loaded_judge(asked: str | None, made: Sequence[Study], folders: Sequence[Path]) -> Sufficiency | None:
    """The classifier that was asked for, or that of a cascade, where it ships or lies below the folders unchanged."""
    from lm_eval_tandem.judge import artefact  # brings scikit-learn

    if asked is not None:
        return classifier_of(asked)
    for run in [study.cascade for study in made]:
        told = {} if run is None else run.about.get("judge") or {}
        if run is None or "sha256" not in told:
            continue
        below = [file.parent for folder in folders for file in folder.rglob("config.json")]
        for place in (_paths.classifiers() / run.about["classifier"], *sorted(below)):
            if place.name == run.about["classifier"] and same_sum(place / "config.json", told["sha256"]):
                return artefact.load(place)
    return None


def classifier_of(asked: str) -> Sufficiency:
    """The classifier in a folder, or that ships under a name."""
    from lm_eval_tandem.judge import artefact

    shipped = _paths.classifiers() / asked
    return artefact.load(shipped if shipped.is_dir() else Path(asked).expanduser())


def same_sum(file: Path, checksum: str) -> bool:
    """Whether a classifier's folder still holds what a run judged with."""
    if not file.is_file():
        return False
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False  # some other config.json
    return isinstance(config, dict) and config.get("sha256") == checksum


def only(made: Report, names: Sequence[str]) -> Report:
    """The report with some of its sections."""
    known = [section.name for section in made.sections]
    for name in names:
        if name not in known:
            raise ArgumentError(f"--only {name}: there is no such section; they are {', '.join(known)}.")
    return replace(made, sections=tuple(section for section in made.sections if section.name in names))


def headlines(made: Iterable[Study]) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """What the cascade reached in each study."""
    told = []
    for study in made:
        run = study.cascade
        if run is None:
            continue
        facts = [(f"{accuracy.accuracy(run).text} %", f"right, on {study.questions:,} questions")]
        for other, what in ((study.mentor, "the mentor's cost"), (study.high, "the cost of always-high")):
            shown = accuracy.cost_ratio(study, run, other)
            if other is not None and shown != "":
                points = accuracy.percent(study.difference(run, other)[0], signed=True).text
                facts.append((f"{getattr(shown, 'text', shown)} %", f"of {what}, at {points} points of accuracy"))
        facts += paper_s(study, run)
        closed = study.closed(run)
        if closed is not None:
            facts.append((f"{decimals(100 * closed[0], 0)} %", "of the costs between always-high and the oracle saved"))
        told.append((f"{study.title}: {study.label(run)}", tuple(facts)))
    return told


def paper_s(study: Study, run: Run) -> list[tuple[str, str]]:
    """The cascade against the one with the paper's classifier."""
    other = study.paper_s
    shown = "" if other is None else accuracy.cost_ratio(study, run, other)
    if other is None or shown == "":
        return []
    points = accuracy.percent(*study.difference(run, other), signed=True)
    words = f"of the cost with the paper's recipe, at {points} points of accuracy"
    return [(f"{getattr(shown, 'text', shown)} %", words)]


def circumstances(found: Sequence[Run]) -> list[str]:
    """What the runs ran on."""
    said: set[str] = set()
    for run in found:
        about = run.about
        for role in ("mentor", "intern"):
            if role in about:
                said.add(f"{role}: {model(about[role])}")
        if "classifier" in about:
            limits = about.get("thresholds")
            thresholds = "of its own each" if limits is None else listed(limits)
            said.add(
                f"classifier: {model_name(about['classifier'])}, recipe {about['recipe']}, thresholds {thresholds}"
            )
        if "efforts" in about:
            said.add(f"efforts {':'.join(map(str, about['efforts']))} mentor tokens; lm-eval-tandem {about['version']}")
        said.add(f"commit {run.commit}")
        said.add(f"{run.domain}: accuracy is the metric {run.metric}")
    return sorted(said)


def model(about: dict[str, Any]) -> str:
    """One model and what ran it."""
    versions = ", ".join(
        f"{name} {about[name]}" for name in ("torch", "transformers", "vllm", "openai") if about.get(name)
    )
    words = [f"{model_name(about['model'])}", f"{about['parameters']:,} parameters" if about.get("parameters") else ""]
    words += [f"{about.get('engine', '')}{f' ({versions})' if versions else ''}"]
    words += [str(about.get("dtype") or "").removeprefix("torch."), str(about.get("device") or "")]
    return ", ".join(word for word in words if word)


def write(made: Report, output: Path) -> list[Path]:
    """Write the report; returns the files.

    output: a file that ends in .md, .tex or .html, or a folder that gets README.md, report.html, tables.tex, one CSV
        file per table in tables/ and one SVG file per figure in figures/.
    """
    if output.suffix in FORMATS:
        form = {".md": markdown.text, ".tex": latex.text, ".html": html.text}[output.suffix]
        return written({output: form(made)})
    if output.suffix and not output.is_dir():
        raise ArgumentError(f"--output {output}: a report is a folder, or a file that ends in {', '.join(FORMATS)}.")
    texts = {
        output / "README.md": markdown.text(made, figures="figures"),
        output / "report.html": html.text(made),
        output / "tables.tex": latex.text(made),
    }
    texts |= {output / "tables" / f"{table.name}.csv": spreadsheet.text(table) for table in made.tables}
    texts |= {output / "figures" / f"{figure.name}.svg": standing_alone(figure.svg) for figure in made.figures}
    return written(texts)


def written(texts: dict[Path, str]) -> list[Path]:
    """Write texts to files, folders included."""
    for file, text in texts.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ArgumentError(
                f"--output: {file} cannot be written ({reason(error)}); give a folder that can."
            ) from None
    return list(texts)


def standing_alone(drawing: str) -> str:
    """A drawing with its style sheet and a ground, to be shown as a file of its own."""
    ground = '<rect class="fill-paper" width="100%" height="100%"/>'
    head, _, rest = drawing.partition(">")
    return f"{head}><style>{svg.style()}</style>{ground}{rest}\n"
