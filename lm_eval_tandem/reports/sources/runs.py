"""The harness's result and sample files, read back question by question."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.digits import settled, significant, typed
from lm_eval_tandem.errors import ArgumentError

Floats = NDArray[np.float64]
Key = tuple[str, int]
"""A question: task and document id."""

COLUMNS = ("length", "mentor_tokens", "tflops", "stage", "truncated", "dollars")
"""A tandem's own figures per question, where the task or the ledger has them."""
SUBJECT_FIELDS = ("subject", "type")
"""Fields of documents that name a subject, where no other is asked for."""
SETTING = ("efforts", "insights", "guidance", "thinking")
"""What a mentor and an intern are told besides the policy."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run on one domain: a task, or the tasks of one of the harness's groups.

    name: e.g. tandem-pair-cascade. policy: "" for another model. about: what the tandem says of itself.
    arguments: the model arguments that it was given. flags: what the harness was given besides, as typed.
    keys, subjects, score: one per question, sorted; score is the task's first metric. columns: see `COLUMNS`; a
    figure that is not known is absent. records: the ledger's, one per question, or none.
    """

    name: str
    policy: str
    domain: str
    about: Mapping[str, Any]
    arguments: Mapping[str, Any]
    flags: tuple[str, ...]
    commit: str
    metric: str
    keys: tuple[Key, ...]
    subjects: tuple[str, ...]
    score: Floats
    columns: Mapping[str, Floats]
    records: tuple[Mapping[str, Any], ...] = ()

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which questions count as answered right."""
        return np.asarray(settled(self.score) >= 0.5, dtype=np.bool_)

    @property
    def identity(self) -> str:
        """What makes two runs the same one, made again."""
        return identity(self.about) if self.about else self.name


@dataclass
class _Part:
    """One run on one task."""

    run: Run
    file: str
    fields: list[Mapping[str, Any]] = field(default_factory=list)


def read(folders: Iterable[Path], metric: str | None = None, by: str | None = None) -> list[Run]:
    """Every run below the folders, the newest of each, sorted by domain and name; no records yet (`ledgers.joined`).

    metric: the grade to report, as NAME or NAME,FILTER (default: each task's first). by: the field of the documents
        that names their subject (default: `subject` or `type`, where documents have it).

    Raises
    ------
    ArgumentError
        A folder holds no readable results, or results without their samples.
    """
    paths = list(folders)
    parts: dict[tuple[str, str], _Part] = {}
    groups: dict[str, str] = {}
    for file in sorted((file for folder in paths for file in results_below(folder)), key=lambda file: file.name):
        results = loaded(file)
        for group, tasks in (results.get("group_subtasks") or {}).items():
            groups |= dict.fromkeys(tasks, group)
        for part in parts_of(file, results, metric):
            parts[part.run.domain, part.run.identity] = part
    if by is not None and not any(by in document for part in parts.values() for document in part.fields):
        known = sorted({name for part in parts.values() for document in part.fields[:1] for name in document})
        raise ArgumentError(f"--by {by}: no question has this field; they have {', '.join(known)}.")
    domains: dict[tuple[str, str], list[_Part]] = {}
    for (task, run), part in sorted(parts.items()):
        domains.setdefault((groups.get(task, task), run), []).append(part)
    runs = [assembled(domain, found, by) for (domain, _), found in sorted(one_per_task(domains).items())]
    return sorted(runs, key=lambda run: (run.domain, run.name, run.identity))


def one_per_task(domains: dict[tuple[str, str], list[_Part]]) -> dict[tuple[str, str], list[_Part]]:
    """Cascades that answered single tasks of a domain, each with a classifier of its own, as one run."""
    tasks: dict[str, set[str]] = {}
    for (domain, _), parts in domains.items():
        tasks.setdefault(domain, set()).update(part.run.domain for part in parts)
    whole: dict[tuple[str, str], list[_Part]] = {}
    pieces: dict[tuple[str, str], list[_Part]] = {}
    for (domain, name), parts in domains.items():
        about = parts[0].run.about
        if len(parts) == len(tasks[domain]) or "classifier" not in about:
            whole[domain, name] = parts
        else:
            plain = {**about, "classifier": "one per task", "thresholds": None, "judge": {"per": "task"}}
            joint = [_Part(replace(part.run, about=plain), part.file, part.fields) for part in parts]
            pieces.setdefault((domain, identity(plain)), []).extend(joint)
    return whole | pieces


def identity(about: Mapping[str, Any]) -> str:
    """Pair, settings, policy and judge of a tandem, as one string."""
    roles = {
        role: [about[role].get(k) for k in ("model", "parameters")] for role in ("mentor", "intern") if role in about
    }
    rest = {name: about.get(name) for name in ("run", "seed", "classifier", "recipe", "thresholds", *SETTING)}
    rest["thresholds"] = [typed(value) for value in rest["thresholds"]] if rest["thresholds"] else None
    return json.dumps([roles, rest, (about.get("judge") or {}).get("sha256")], sort_keys=True)


def results_below(folder: Path) -> list[Path]:
    """The results files of the harness below a folder."""
    if not folder.is_dir():
        raise ArgumentError(f"{folder} is no folder; give the one that lm_eval got as --output_path.")
    files = sorted(folder.rglob("results_*.json"))
    if not files:
        raise ArgumentError(f"{folder} holds no results of the harness; run it with --output_path and --log_samples.")
    return files


def loaded(file: Path) -> dict[str, Any]:
    """A results file as the harness wrote it."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        tasks, config = results["configs"], results["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{file} cannot be read as results of the harness ({reason(error)}); run it again or take the file away."
        ) from None
    if not isinstance(tasks, dict) or not isinstance(config, dict):
        raise ArgumentError(f"{file} holds no configs of tasks; run the harness again or take the file away.")
    return dict(results)


def reason(error: Exception) -> str:
    """Why a file could not be read, in a few words and without the path."""
    return error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def parts_of(file: Path, results: dict[str, Any], metric: str | None) -> list[_Part]:
    """The runs, one per task, of one results file."""
    config = results["config"]
    arguments = given_arguments(config.get("model_args"))
    about = dict(config.get("tandem") or {})
    if about:
        about["thinking"] = str(arguments.get("thinking", "auto"))
    found = []
    for task, settings in results["configs"].items():
        lines, name = graded(file, task, settings, metric)
        run = Run(
            name=about.get("run", file.parent.name),
            policy=about.get("policy", ""),
            domain=task,
            about=about,
            arguments=arguments,
            flags=flags(config, results),
            commit=str(results.get("git_hash") or "unknown"),
            metric=name,
            keys=tuple((task, int(line["doc_id"])) for line in lines),
            subjects=(),
            score=column(lines, name),
            columns={
                name: column(lines, name) for name in COLUMNS if all(line.get(name) is not None for line in lines)
            },
        )
        documents = [line["doc"] if isinstance(line.get("doc"), dict) else {} for line in lines]
        found.append(_Part(run, file.name, documents))
    return found


def given_arguments(arguments: Any) -> dict[str, Any]:
    """The model arguments of a run; what the tandem itself added or nobody should see is left out."""
    if isinstance(arguments, str):
        arguments = dict(pair.split("=", 1) for pair in arguments.split(",") if "=" in pair)
    secret = ("token", "key", "password")
    return {
        name: value
        for name, value in (arguments or {}).items()
        if name != "model" and not any(str(name).lower().endswith(word) for word in secret)
    }


def flags(config: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[str, ...]:
    """How the harness was called, as far as a repetition needs it."""
    said: list[str] = []
    if results.get("chat_template") or results.get("chat_template_sha"):
        said.append("--apply_chat_template")
    if config.get("batch_size"):
        said.append(f"--batch_size {config['batch_size']}")
    if config.get("limit"):
        said.append(f"--limit {significant(config['limit'], 6)}")
    if config.get("gen_kwargs"):
        pairs = config["gen_kwargs"]
        text = pairs if isinstance(pairs, str) else ",".join(f"{name}={value}" for name, value in pairs.items())
        said.append(f"--gen_kwargs {text}")
    return tuple(said)


def graded(file: Path, task: str, settings: Mapping[str, Any], metric: str | None) -> tuple[list[dict[str, Any]], str]:
    """The samples of a task, one line per question in order, and the metric that grades them."""
    asked, _, filtered = (metric or "").partition(",")
    name = asked or settings["metric_list"][0]["metric"]
    lines = objects(samples_of(file, task))
    filters = list(dict.fromkeys(str(line.get("filter", "none")) for line in lines))
    if filtered and filtered not in filters:
        raise ArgumentError(f"--metric {metric}: {task} has no filter {filtered}; it has {', '.join(filters)}.")
    kept = [line for line in lines if str(line.get("filter", "none")) == (filtered or filters[0])]
    lacking = next((line for line in kept if name not in line), None)
    if lacking is not None:
        raise ArgumentError(
            f"--metric {name}: {task} has no such metric in its samples; it has "
            f"{', '.join(lacking.get('metrics', ())) or 'none'}."
        )
    return kept, name


def samples_of(file: Path, task: str) -> Path:
    """The samples file that lies beside a results file, plain or packed (xz)."""
    plain = file.with_name(f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl")
    packed = plain.with_name(plain.name + ".xz")
    found = packed if packed.is_file() else plain
    if not found.is_file():
        raise ArgumentError(f"{file} has no samples of {task} beside it; run the harness with --log_samples.")
    return found


def lines_of(file: Path) -> list[str]:
    """The lines of a JSON-lines file, plain or packed (xz); at least one."""
    try:
        content = file.read_bytes()
        text = (lzma.decompress(content) if file.suffix == ".xz" else content).decode()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{file} cannot be read ({reason(error)}); run the harness again.") from None
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ArgumentError(f"{file} holds no samples; run the harness again with --log_samples.")
    return lines


def objects(file: Path) -> list[dict[str, Any]]:
    """The samples of a file."""
    try:
        found = [json.loads(line) for line in lines_of(file)]
        return sorted(found, key=lambda line: int(line["doc_id"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"{file} cannot be read as samples ({reason(error)}); run the harness again.") from None


def column(lines: Sequence[Mapping[str, Any]], name: str) -> Floats:
    """One figure of every question."""
    return np.array([float(line[name]) for line in lines])


def assembled(domain: str, parts: Sequence[_Part], by: str | None) -> Run:
    """One run of the parts that it has in a domain's tasks."""
    runs = [part.run for part in parts]
    shared = set.intersection(*(set(run.columns) for run in runs))
    return replace(
        runs[-1],
        domain=domain,
        keys=tuple(key for run in runs for key in run.keys),
        subjects=tuple(subject for part in parts for subject in subjects_of(part, domain, len(parts) > 1, by)),
        score=np.concatenate([run.score for run in runs]),
        columns={name: np.concatenate([run.columns[name] for run in runs]) for name in COLUMNS if name in shared},
    )


def subjects_of(part: _Part, domain: str, several: bool, by: str | None) -> list[str]:
    """The subject of each question: a field of its document, or its task where the domain has several."""
    if by is None and several:
        return [part.run.domain.removeprefix(f"{domain}_")] * len(part.fields)
    for name in SUBJECT_FIELDS if by is None else (by,):
        values = [str(document.get(name) or "") for document in part.fields]
        if any(values):
            numbers = all(value.replace(".", "", 1).isdigit() for value in values)
            return [f"{name} {value}" for value in values] if numbers else values
    return [""] * len(part.fields)
