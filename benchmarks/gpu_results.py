"""The results of `gpu.py`: its parts, the JSON file that grows part by part, and the readable table beside it."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = "tandem-gpu/1"
PAIRS = {"large": ("32B", "7B"), "small": ("1.5B", "0.5B"), "tiny": ("4.5M", "0.7M")}
"""Names of the pairs of mentor and intern, with the shapes of both (`random_models.SHAPES`)."""
LIBRARIES = {"hf": "transformers", "vllm": "vllm"}
"""The library behind each engine."""
POLICIES = ("mentor", "cascade", "stage:3", "intern")
"""In the order of their worth; stage:3 is the paper's always-high."""
HEADINGS = (
    "| in flight | policy | tokens × | s per question (wall) | latency mean s | tokens/s | mentor tokens "
    "| intern tokens | judge % | recomputed % | memory GiB | times as fast as the mentor | run |\n"
    "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)
EXPLANATION = """\
Random weights in bfloat16, in the shapes of Qwen2.5 (which are those of R1-Distill-Qwen) without their biases.
There are as many questions as are in flight. Numbers of tokens are the paper's times the factor in the column
*tokens ×*, and the stages at which questions stop are in the paper's shares. *Mentor tokens* and *intern tokens*
are generated ones per question. *Memory* is the most that PyTorch had allocated on the GPU for both models of
transformers, and what is taken of the GPU with both engines of vLLM, which take their share when they start; on a
CPU it is the process's. *Run* is the number of the run in this list:"""


@dataclass(frozen=True)
class Group:
    """Parts that one process measures: an engine with a pair of models.

    Attributes
    ----------
    engine, pair
        Keys of `LIBRARIES` and `PAIRS`.
    in_flight
        Numbers of questions at the same time.
    """

    engine: str
    pair: str
    in_flight: tuple[int, ...]

    @property
    def name(self) -> str:
        """Starts the names of its parts."""
        return f"{self.engine}/{self.pair}"

    def part(self, *names: object) -> str:
        """Return the name of a part."""
        return "/".join([self.name, *map(str, names)])

    def runs(self, in_flight: int) -> list[str]:
        """Return the names of the parts with this many questions in flight."""
        return [self.part(in_flight, policy) for policy in POLICIES]

    @property
    def parts(self) -> list[str]:
        """Names of all parts but the loading, in the order of their worth."""
        return [self.part("entropies"), *(name for count in self.in_flight for name in self.runs(count))]

    @property
    def title(self) -> str:
        """The group in words."""
        return f"{LIBRARIES[self.engine]}, {' + '.join(PAIRS[self.pair])} parameters"


class Results:
    """What has been measured on one kind of device; saved after each change.

    Parameters
    ----------
    file
        The JSON file; one that exists is continued. The table lies beside it.
    device
        The device's name.

    Attributes
    ----------
    parts
        Measurements by the part's name.
    skipped
        Why a part is missing, by its name.
    sessions
        Facts of each run of `gpu.py` that measured something.
    """

    def __init__(self, file: Path, device: str) -> None:
        self.file = file
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if known and (known.get("format"), known.get("device")) != (FORMAT, device):
            raise SystemExit(f"{file} is not of {device} and format {FORMAT}; name another folder with --output.")
        self.device = device
        self.sessions: list[dict[str, Any]] = known.get("sessions", [])
        self.parts: dict[str, dict[str, Any]] = known.get("parts", {})
        self.skipped: dict[str, str] = known.get("skipped", {})

    @classmethod
    def of_device(cls, folder: Path, device: str) -> Results:
        """Return the results of a device, which are in a file of its name in the folder."""
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        return cls(folder / f"gpu-{slug}.json", device)

    def missing(self, group: Group) -> list[str]:
        """Return the parts of a group that have not been measured."""
        return [name for name in group.parts if name not in self.parts]

    def add(self, name: str, values: dict[str, Any]) -> None:
        """Add a part of the last session, and save."""
        self.parts[name] = {"session": len(self.sessions), **values}
        self.skipped.pop(name, None)
        self.save()

    def expect(self, group: Group) -> None:
        """Forget why parts of a group were missing in an earlier session, and save."""
        for name in group.parts:
            self.skipped.pop(name, None)
        self.save()

    def explain(self, group: Group, reason: str) -> None:
        """Say why the parts of a group are missing for which no reason is known, and save."""
        self.skip([name for name in self.missing(group) if name not in self.skipped], reason)

    def skip(self, names: Sequence[str], reason: str) -> None:
        """Say why parts are missing, and save."""
        self.skipped |= dict.fromkeys(names, reason)
        self.save()

    def save(self) -> None:
        """Write the JSON file and the table; a process that is killed meanwhile leaves the former ones."""
        content = {
            "format": FORMAT,
            "device": self.device,
            "sessions": self.sessions,
            "parts": self.parts,
            "skipped": self.skipped,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for file, text in (
            (self.file, json.dumps(content, indent=1)),
            (self.file.with_suffix(".md"), table(self)),
        ):
            unfinished = file.with_name(file.name + ".unfinished")
            unfinished.write_text(text + "\n", encoding="utf-8")
            os.replace(unfinished, file)


def table(results: Results) -> str:
    """Return everything that was measured, in Markdown."""
    lines = [f"# Mentor and intern on {results.device}", "", EXPLANATION, ""]
    lines += [f"{number}. {session_line(session)}" for number, session in enumerate(results.sessions, 1)]
    groups = dict.fromkeys(tuple(name.split("/")[:2]) for name in (*results.parts, *results.skipped))
    for engine, pair in groups:
        lines += group_lines(results, Group(engine, pair, ()))
    return "\n".join(lines)


def session_line(session: dict[str, Any]) -> str:
    """Return when, of which commit, with which versions and how something was run."""
    versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    seconds = f"{session['seconds']:.0f} s" if "seconds" in session else "did not end by itself"
    return f"{session['started']}, commit {session['commit']}, {seconds}: {versions}. `{session['command']}`"


def group_lines(results: Results, group: Group) -> list[str]:
    """Return the paragraphs and the table of one engine and pair."""
    lines = ["", f"## {group.title}", ""]
    if load := results.parts.get(group.part("load")):
        roles = [f"{shape} in {load['seconds'][i]:.0f} s" for i, shape in enumerate(PAIRS[group.pair])]
        memory = [f", {gib:.1f} GiB of the GPU" for gib in load["gib"]] or ["", ""]
        lines += ["Loaded: " + "; ".join(role + taken for role, taken in zip(roles, memory, strict=True)) + ".", ""]
    runs = {name: run for name, run in results.parts.items() if run.get("policy") and name.startswith(group.name + "/")}
    if runs:
        mentors = {run["in_flight"]: run["wall"] / run["factor"] for run in runs.values() if run["policy"] == "mentor"}
        lines += [HEADINGS, *(row(run, mentors.get(run["in_flight"])) for run in ordered(runs)), ""]
    warned = dict.fromkeys(warning for name, run in runs.items() for warning in run["warnings"])
    lines += [line for warning in warned for line in (f"Warning: {warning}", "")]
    if found := results.parts.get(group.part("entropies")):
        lines += [entropies_line(found), ""]
    reasons: dict[str, list[str]] = {}
    for name, reason in results.skipped.items():
        if name.startswith(group.name + "/"):
            reasons.setdefault(reason, []).append(name.removeprefix(group.name + "/"))
    lines += [f"Not measured: {', '.join(names)} ({reason})." for reason, names in reasons.items()]
    return lines


def ordered(runs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return runs in the order of the table."""
    return sorted(runs.values(), key=lambda run: (run["in_flight"], POLICIES.index(run["policy"])))


def row(run: dict[str, Any], mentor: float | None) -> str:
    """Return one line of the table; `mentor`: seconds of the mentor's run at the paper's numbers of tokens."""
    count, wall = len(run["seconds"]), run["wall"]
    cells = [
        run["in_flight"],
        run["policy"],
        f"{run['factor']:g}",
        f"{wall / count:.2f}",
        f"{statistics.fmean(run['seconds']):.2f}",
        f"{run['tokens_per_second']:.0f}",
        f"{run['mentor_tokens']:.0f}",
        f"{run['intern_tokens']:.0f}",
        f"{100 * run['judge_share']:.1f}",
        f"{100 * run['recomputed']:.2f}",
        f"{run['gib']:.1f}",
        "" if mentor is None else f"{mentor * run['factor'] / wall:.2f}",
        run["session"],
    ]
    return f"| {' | '.join(map(str, cells))} |"


def entropies_line(found: dict[str, Any]) -> str:
    """Return a sentence on the exactness of entropies."""
    return (
        f"Entropies of {found['tokens']} tokens over the whole vocabulary, {found['least']:.2f} to "
        f"{found['largest']:.2f} nats: they differ from {found['reference']} by at most {found['max_error']:.1e} nats, "
        f"{found['mean_error']:.1e} on average."
    )
