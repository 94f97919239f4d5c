"""Every Eval Ever (https://github.com/evaleval/every_eval_ever): one file of results and one of samples per task.

The files lie in `data/<collection>/<developer>/<model>/` as in the board's data set, which takes them by a pull
request. `every_eval_ever_results` makes the first, `every_eval_ever_samples` the second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lm_eval_tandem.errors import ArgumentError

if TYPE_CHECKING:
    from lm_eval_tandem.submissions.models import Identity
    from lm_eval_tandem.submissions.redaction import Redaction
    from lm_eval_tandem.submissions.sources import SubmittedRun

HELP = "files for a pull request to the data set of Every Eval Ever"
SCHEMA_VERSION = "0.3.0"
RELATIONSHIPS = ("first_party", "third_party", "collaborative", "other")
DATASTORE = "evaleval/EEE_datastore"
ROWS = ("all", "grade")
LARGE = 100e6
"""Bytes from which on the command says how the files become smaller."""
UNFINISHED = ".unfinished"
"""Ending of a file that is being written."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this format."""
    parser.add_argument("--organization", required=True, metavar="NAME", help="who ran the evaluation and submits it")
    parser.add_argument(
        "--relationship",
        required=True,
        choices=RELATIONSHIPS,
        help="of that organization to the developers of the models",
    )
    parser.add_argument(
        "--developer", metavar="NAME", help="who made models whose names do not say so, as org/name does"
    )
    parser.add_argument(
        "--availability",
        choices=("open_weights", "closed_weights"),
        help="whether the weights of models are public of which the results do not say it: local folders, servers",
    )
    parser.add_argument("--collection", default="lm-eval-tandem", help="folder in the data set (default: %(default)s)")
    parser.add_argument("--metric", help="the grade of an answer, NAME or NAME,FILTER (default: the task's first)")
    parser.add_argument(
        "--rows",
        choices=ROWS,
        default="all",
        help="samples: one row per question and metric, as the board asks (all, the default), or per question alone",
    )


def export(given: argparse.Namespace) -> list[str]:
    """Write the files and return what they are and how they are handed in."""
    from lm_eval_tandem.reports.sources import recorded_runs
    from lm_eval_tandem.submissions import sources
    from lm_eval_tandem.submissions.models import identify, slug
    from lm_eval_tandem.submissions.redaction import Redaction

    if not given.organization.strip():
        raise ArgumentError("--organization is empty; give the name of who ran the evaluation.")
    collection, redaction = slug(given.collection), Redaction()
    for run in recorded_runs.read(sources.results_files(given.results)):
        identify(run, given.organization, given.developer, given.availability)  # before samples and ledgers are read
    written: list[Path] = []
    lines: list[str] = []
    try:
        for submitted in sources.read(given.results, given.metric):
            model = identify(submitted, given.organization, given.developer, given.availability)
            for files in files_of(submitted, model, given, collection, redaction):
                written += files
            lines.append(f"{submitted.name}: {model.id}")
            lines += notes(submitted, model)
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    size = sum(file.stat().st_size for file in written)
    for file in written:
        file.rename(file.with_name(file.name.removesuffix(UNFINISHED)))
    if redaction.replaced:
        lines.append(
            f"{redaction.replaced:,} texts held a key, or a path or name of a machine, which was replaced; see [key], "
            "[host] and … in the files."
        )
    if size >= LARGE and given.rows == "all":
        lines.append(
            f"The files have {size / 1e6:,.0f} MB, since the samples have a row per question and metric, as the board "
            "asks; with --rows grade they have a row per question."
        )
    return [*lines, "", *next_steps(given.output, collection, len(written), size)]


def files_of(
    submitted: SubmittedRun, model: Identity, given: argparse.Namespace, collection: str, redaction: Redaction
) -> Iterator[list[Path]]:
    """Write the files of a run, under names that end in `UNFINISHED`, and return those of each task."""
    from lm_eval_tandem.submissions.every_eval_ever_results import evaluation_id, results_file
    from lm_eval_tandem.submissions.every_eval_ever_samples import rows

    for task in (*submitted.tasks, *submitted.groups):
        own_id = redaction.text(evaluation_id(submitted, task, model))
        place = PurePosixPath("data", collection, *model.id.split("/"))
        name = file_name(own_id, (submitted.results.get("task_hashes") or {}).get(task.name))
        samples = place / f"{name}_samples.jsonl"
        target, companion = given.output / f"{place / name}.json", given.output / samples
        for file in (target, companion):
            if file.exists():
                raise ArgumentError(
                    f"{file} is there already: the run {submitted.name} has been exported; give another folder as "
                    "--output, or remove it."
                )
        detailed: dict[str, Any] | None = None  # a group has the samples of its tasks, each in the task's own file
        if task.samples:
            lines = rows(task, model, own_id, given.rows == "grade", redaction)
            unfinished, checksum, count = write_rows(companion, lines)
            yield [unfinished]
            detailed = {
                "format": "jsonl",
                "file_path": samples.as_posix(),
                "hash_algorithm": "sha256",
                "checksum": checksum,
                "total_rows": count,
            }
        content = results_file(submitted, task, model, given.organization, given.relationship, time.time(), detailed)
        content = redaction(content) | {"evaluation_id": own_id}
        yield [write_text(target, json.dumps(content, indent=2, allow_nan=False) + "\n")]


def file_name(evaluation_id: str, task_hash: str | None) -> str:
    """Return the file's UUID, the same at every export of a run, so that a second one is noticed."""
    content = hashlib.sha256(f"{evaluation_id} {task_hash}".encode()).digest()
    return str(uuid.UUID(bytes=content[:16], version=4))


def write_rows(target: Path, lines: Iterable[dict[str, Any]]) -> tuple[Path, str, int]:
    """Write rows as JSON lines, and return the unfinished file, its SHA-256 and the number of rows."""
    unfinished, checksum, count = target.with_name(target.name + UNFINISHED), hashlib.sha256(), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            for line in lines:
                content = (json.dumps(line, allow_nan=False) + "\n").encode()
                checksum.update(content)
                file.write(content)
                count += 1
    except OSError as error:
        raise ArgumentError(f"--output: {target} cannot be written ({error.strerror}); give another folder.") from None
    return unfinished, checksum.hexdigest(), count


def write_text(target: Path, text: str) -> Path:
    """Write a text, and return the unfinished file."""
    unfinished = target.with_name(target.name + UNFINISHED)
    try:
        unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"--output: {target} cannot be written ({error.strerror}); give another folder.") from None
    return unfinished


def notes(submitted: SubmittedRun, model: Identity) -> list[str]:
    """Return what was left out for a run, what of it was checked, and what its export lacks."""
    from lm_eval_tandem.submissions.every_eval_ever_results import unknown_bounds

    found = [*submitted.notes, *submitted.unverified]
    if not any(task.records for task in submitted.tasks):
        found.append("without a ledger: rows have no tokens, times and prices")
    for task in submitted.tasks:
        sample = next(iter(task.samples.values()))[0]
        if "doc" not in sample and not sample.get("arguments"):
            found.append(f"the samples of {task.name} have no questions: rows have empty inputs and no hash")
        if task.asked:
            found.append(f"{task.name}: {task.asked}, and the files say so")
        unknown = unknown_bounds(task)
        if unknown:
            found.append(f"{task.name}: the bounds of {', '.join(unknown)} are not known")
    if any(part.availability == "unknown" for part in model.parts):
        found.append("it is not known whether the weights are public: --availability says it")
    return [f"  {note}" for note in found]


def next_steps(output: Path, collection: str, files: int, size: int) -> list[str]:
    """Return how the files, of a size in bytes, are checked and handed in."""
    folder = f"data/{collection}"
    return [
        f"{files} files in {output / folder}, {size / 1e6:,.1f} MB. Nothing was uploaded. To hand them in:",
        f"  cd {shlex.quote(str(output))}",
        f"  uvx --python 3.12 --from every-eval-ever=={SCHEMA_VERSION} every_eval_ever validate '{folder}/*/*/*.json*'",
        f"  hf upload {DATASTORE} {folder} {folder} --repo-type dataset --create-pr "
        f'--commit-message "[Submission] {collection}"',
        "In the pull request, write the comment: /eee validate changed",
        "Names of models, benchmarks and metrics that the board does not know need an alias in "
        "github.com/evaleval/eval-card-registry.",
    ]
