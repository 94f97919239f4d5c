"""Real models: collect, fit, and run every policy on GSM8K and HumanEval, in as many sittings as it takes.

    python benchmarks/real.py MODELS [--data FOLDER] [--work FOLDER] [--output FOLDER] [--threads N] [--dtype TYPE]
        [--only STEP,STEP]

MODELS is a folder with the GGUF files of Qwen2.5-Coder-1.5B-Instruct (mentor), Qwen2.5-Coder-0.5B-Instruct and
SmolLM2-135M-Instruct (interns). The order is the one that honest figures need:

1. `collect` on training questions of GSM8K alone: every stage, and the mentor's own answers;
2. `fit`, and `thresholds`, whose sentence names the policy to use before any test question is asked;
3. every policy on a fixed sample of GSM8K's test questions, and on all of HumanEval, to which the classifier is carried
   over from GSM8K;
4. `benchmarks/strategies.py` for the first pair: other ways to work together are tried on training questions, and what
   is chosen of each is asked half of those test questions of GSM8K, beside the policies. What llama.cpp cannot run
   (token by token, and `zscore`) runs on transformers, with the weights of the same files, in bfloat16 or in
   the type that --dtype names;
5. the reports.

A step that is finished is not repeated, and of one that was killed only what is missing is asked again: answers are in
a store below --work. Without --data the questions come from the hub; FOLDER holds them as `gsm8k_train.jsonl`,
`gsm8k_test.jsonl` and `humaneval.jsonl`. `make real` calls this.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_tandem import _paths
from lm_eval_tandem.cascade.policies import POLICIES
from lm_eval_tandem.machine import cores
from lm_eval_tandem.training.collect import STORE
from lm_eval_tandem.training.reference_questions import NAME as REFERENCE_NAME

MENTOR = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
GUIDANCE, EFFORTS = "handoff", "40:80:160"
"""Chosen on training questions: see docs/real-models.md."""
TRAINING_QUESTIONS = 120
TEST_TASKS = ("tandem_gsm8k", "tandem_humaneval")
STRATEGIES = "strategies"
"""The folder of the strategies' runs."""
TEST_QUESTIONS, SEED = 200, 2026
"""Size and seed of the sample of GSM8K's test questions."""
STRATEGY_QUESTIONS = 100
"""Those of the sample that the strategies are asked: some of them take minutes a question."""
COMPARED = ("intern", "stage:3", "llm_cascade", "escalate", "cascade", "mentor")
"""The policies that stand beside the strategies."""
JUDGED = tuple(kind.name for kind in POLICIES.values() if kind.needs_judge)
"""The policies that need a classifier."""
ANSWER_TOKENS, WINDOW, BATCH = 512, 2048, 8
DTYPES, UNPACKED_BATCH = ("bfloat16", "float32"), 32
"""Of the models in transformers: the first type unless --dtype names the other, which is faster on a processor without
`avx512_bf16`; a step over 32 questions takes twice as long as one over 8."""
REFERENCE = Path("reference", REFERENCE_NAME)
"""How they read training questions, below --work."""
GENERATION = ["--apply_chat_template", "--batch_size", str(BATCH), "--gen_kwargs", f"max_gen_toks={ANSWER_TOKENS}"]
OBJECTIVE = "accuracy@cost<=0.73"
"""Three quarters of what the mentor alone costs on the training questions, in TFLOPs of Eq. 12."""
DATA = {"gsm8k_train": "tandem_gsm8k_train", "gsm8k_test": "tandem_gsm8k", "humaneval": "tandem_humaneval"}
"""The files of --data, and the tasks that read them."""
GSM8K_TEST = 1319
"""The number of GSM8K's test questions."""


@dataclass(frozen=True)
class Pair:
    """Two models and what is run with them.

    Attributes
    ----------
    name
        The folder of its results.
    intern
        The intern's file; the mentor is the same for all.
    policies
        In the order in which they are run.
    """

    name: str
    intern: str
    policies: tuple[str, ...]


PAIRS = (
    Pair(
        "coder-0.5b",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        (
            *("mentor", "intern", "stage:1", "stage:2", "stage:3", "cascade", "escalate", "llm_cascade"),
            "budget_forcing:120",
        ),
    ),
    Pair("smollm2-135m", "smollm2-135m-instruct-q4_1.gguf", ("intern", "stage:1", "stage:2", "stage:3", "cascade")),
)


@dataclass(frozen=True)
class Step:
    """One command, and the file by which it is known to be finished.

    Attributes
    ----------
    name
        How --only names it.
    command
        The command.
    output, file
        The folder that it writes to, and the pattern of a file somewhere below it that is there when it has finished;
        None for a step that is run each time.
    printed
        The file that its output goes to; None for the terminal.
    """

    name: str
    command: list[str]
    output: Path
    file: str | None
    printed: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether its file is there."""
        return self.file is not None and any(self.output.rglob(self.file))


@dataclass(frozen=True)
class Setting:
    """Where things are: the arguments of the program."""

    models: Path
    work: Path
    output: Path
    threads: int
    dtype: str = DTYPES[0]

    def models_of(self, pair: Pair) -> str:
        """`--model_args` of a pair, without its policy."""
        return (
            f"mentor={self.models / MENTOR},intern={self.models / pair.intern},guidance={GUIDANCE},"
            f"efforts={EFFORTS},max_length={WINDOW},threads={self.threads}"
        )

    def arguments(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """`--model_args` of a strategy: its files where they are, and what its engine needs."""
        unpacked = own.get("backend") == "hf"
        found = dict(own)
        for name in {"mentor", "intern", "models"} & set(own):
            files = [self.unpacked(file) if unpacked else self.models / file for file in str(own[name]).split(";")]
            found[name] = ";".join(map(str, files))
        if "reference" in own:
            found["reference"] = self.work / own["reference"]
        engine = {"dtype": self.dtype, "batch_size": UNPACKED_BATCH}
        return {**found, **(engine if unpacked else {"max_length": WINDOW, "threads": self.threads})}

    def unpacked(self, file: str) -> Path:
        """The folder for the model of a file that transformers runs."""
        return self.work / "transformers" / Path(file).stem

    def training(self, pair: Pair) -> Iterator[Step]:
        """Collect, fit, and say which policy to use."""
        collected, classifier = self.work / pair.name, self.output / pair.name / "classifier"
        program = [sys.executable, "-m", "lm_eval_tandem.cli"]
        yield Step(
            f"collect-{pair.name}",
            [
                *(*program, "collect", "--model_args", self.models_of(pair), "--tasks", "tandem_gsm8k_train"),
                *("--limit", str(TRAINING_QUESTIONS), "--no_statistics", "--output", str(collected), *GENERATION),
            ],
            collected,
            "collected.parquet",
        )
        yield Step(
            f"fit-{pair.name}",
            [
                *(*program, "fit", str(collected), "--inputs", "probe", "--objective", OBJECTIVE),
                *("--output", str(classifier)),
            ],
            classifier,
            "config.json",
        )
        yield Step(
            f"thresholds-{pair.name}",
            [
                *(*program, "thresholds", str(collected), "--classifier", str(classifier)),
                *("--objective", OBJECTIVE),
            ],
            self.output / pair.name,
            "thresholds.txt",
            printed=self.output / pair.name / "thresholds.txt",
        )

    def testing(self, pair: Pair) -> Iterator[Step]:
        """Every policy on both tasks."""
        for task in TEST_TASKS:
            for policy in pair.policies:
                yield self._test(pair, task, policy, "tandem", self._arguments(pair, policy))

    def in_transformers(self, pair: Pair) -> Iterator[Step]:
        """What the strategies need that run on transformers: the models, and how they read training questions."""
        for file in (MENTOR, pair.intern):
            folder = self.unpacked(file)
            program = str(Path(__file__).with_name("unpack.py"))
            command = [sys.executable, program, str(self.models / file), str(folder), "--dtype", self.dtype]
            yield Step(f"unpack-{folder.name}", command, folder, "tokenizer_config.json")
        models = ",".join(f"{name}={value}" for name, value in self.arguments(read_by_both(pair)).items())
        folder = (self.work / REFERENCE).parent
        yield Step(
            f"reference-{pair.name}",
            [
                *(sys.executable, "-m", "lm_eval_tandem.cli", "collect", "--reference", "--model_args", models),
                *("--tasks", "tandem_gsm8k_train", "--limit", str(TRAINING_QUESTIONS), "--apply_chat_template"),
                *("--batch_size", str(BATCH), "--output", str(folder)),
            ],
            folder,
            REFERENCE.name,
        )

    def strategies(self, pair: Pair) -> Iterator[Step]:
        """Other ways to work together: chosen on training questions, then asked test questions of GSM8K.

        The later steps are known once the first one has written what is chosen.
        """
        yield from self.in_transformers(pair)
        written = self.output / pair.name / "strategies.json"
        yield Step(
            f"strategies-{pair.name}",
            [
                *(sys.executable, str(Path(__file__).with_name("strategies.py")), "--models", str(self.models)),
                *("--threads", str(self.threads), "--dtype", self.dtype, "--work", str(self.work)),
                *("--store", str(self.work / pair.name / STORE)),
                *("--output", str(written.with_suffix(".md"))),
            ],
            written.parent,
            written.name,
        )
        if not written.exists():
            return
        asked = (STRATEGY_QUESTIONS, STRATEGIES)
        for chosen in json.loads(written.read_text(encoding="utf-8")):
            model, own = chosen["candidate"]
            arguments = [f"{name}={value}" for name, value in self.arguments(own).items()]
            yield self._test(pair, "tandem_gsm8k", chosen["name"], model, arguments, *asked)
        for policy in COMPARED:
            yield self._test(pair, "tandem_gsm8k", policy, "tandem", self._arguments(pair, policy), *asked)

    def _arguments(self, pair: Pair, policy: str) -> list[str]:
        """`--model_args` of a policy on the test questions."""
        arguments = [self.models_of(pair), f"policy={policy}"]
        if policy in JUDGED:
            arguments.append(f"classifier={self.output / pair.name / 'classifier'}")
        if policy == "intern" or policy.startswith("stage"):
            arguments.append("record_features=answers")
        return arguments

    def _test(
        self,
        pair: Pair,
        task: str,
        policy: str,
        model: str,
        arguments: Sequence[str],
        questions: int = TEST_QUESTIONS,
        folder: str | None = None,
    ) -> Step:
        name, folder = "-".join(re.findall(r"[\w.]+", policy)), folder or task
        output = self.output / pair.name / folder / name
        kept = f"store={self.work / 'store.sqlite'},ledger={output / 'ledger.jsonl'}"
        command = [
            *(sys.executable, "-m", "lm_eval_tandem", "--model", model, "--tasks", task, *GENERATION),
            *("--model_args", ",".join([*arguments, kept]), "--include_path", str(_paths.task_configs())),
            *("--output_path", str(output), "--log_samples", "--confirm_run_unsafe_code"),
        ]
        if task == "tandem_gsm8k":
            command += ["--samples", json.dumps({task: sample(questions)})]
        return Step(f"{pair.name}-{folder}-{name}", command, output, "results_*.json")

    def reports(self, pair: Pair) -> Iterator[Step]:
        """The report of a pair, made anew each time; the mentor is that of all pairs, and was asked with the first."""
        folder = self.output / pair.name
        runs = [folder / task for task in TEST_TASKS]
        if "mentor" not in pair.policies:
            runs += [self.output / PAIRS[0].name / task / "mentor" for task in TEST_TASKS]
        yield self._report(pair, "report", runs)
        if (folder / STRATEGIES).is_dir():
            yield self._report(pair, f"report_{STRATEGIES}", [folder / STRATEGIES])

    def _report(self, pair: Pair, name: str, runs: Sequence[Path]) -> Step:
        folder = self.output / pair.name
        command = [
            *(sys.executable, "-m", "lm_eval_tandem.cli", "report", *map(str, runs)),
            *("--output", str(folder / name), "--title", f"{MENTOR} and {pair.intern}"),
            *("--classifier", str(folder / "classifier")),
        ]
        return Step(f"{name}-{pair.name}", command, folder / name, None)


def read_by_both(pair: Pair) -> dict[str, Any]:
    """Arguments of an ensemble of a pair's models in transformers."""
    return {"models": f"{MENTOR};{pair.intern}", "backend": "hf"}


def sample(questions: int = TEST_QUESTIONS) -> list[int]:
    """The numbers of the test questions of GSM8K that are asked, ascending; fewer are spread over all of them."""
    numbers = sorted(random.Random(SEED).sample(range(GSM8K_TEST), TEST_QUESTIONS))
    return numbers[:: TEST_QUESTIONS // questions]


def prepare_data(data: Path | None, work: Path) -> dict[str, str]:
    """The environment of all commands; local questions are laid where the tasks look for them."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if data is None:
        return environment
    folder = work / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in DATA.items():
        found = next(iter(sorted(data.glob(f"{name}*.jsonl"))), None)
        if found is None:
            raise SystemExit(f"real.py: --data {data} holds no {name}.jsonl; leave --data out to use the hub.")
        shutil.copyfile(found, folder / f"{task}.jsonl")
    return {**environment, "TANDEM_DATA": str(folder.resolve()), "HF_HUB_OFFLINE": "1"}


def share_training_answers(work: Path) -> None:
    """Let later pairs find in their store what the mentor, which is the same for all, has written for the first."""
    first = work / PAIRS[0].name / STORE
    for pair in PAIRS[1:]:
        later = work / pair.name / STORE
        if first.exists() and not later.exists():
            later.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first, later)


def all_steps(setting: Setting) -> Iterator[Step]:
    """Every step, in order; some are known once an earlier one has run."""
    for pair in PAIRS:
        yield from setting.training(pair)
        yield from setting.testing(pair)
    yield from setting.strategies(PAIRS[0])
    for pair in PAIRS:
        yield from setting.reports(pair)


def run(step: Step, environment: dict[str, str], log: Path) -> None:
    """Run a step, and note its seconds; a step that fails ends the program, and the next call continues there."""
    print(f"{time.strftime('%H:%M')} {step.name}", flush=True)
    started = time.perf_counter()
    if step.printed is None:
        code = subprocess.run(step.command, env=environment).returncode
    else:
        done = subprocess.run(step.command, env=environment, stdout=subprocess.PIPE, text=True)
        code = done.returncode
        if code == 0:
            step.printed.parent.mkdir(parents=True, exist_ok=True)
            step.printed.write_text(done.stdout, encoding="utf-8")
            print(done.stdout, end="")
    with log.open("a", encoding="utf-8") as file:
        entry = {"step": step.name, "seconds": round(time.perf_counter() - started), "code": code}
        file.write(json.dumps({**entry, "machine": machine(), "python": platform.python_version()}) + "\n")
    if code:
        raise SystemExit(
            f"real.py: {step.name} ended with code {code}; the same command continues with what is missing."
        )


def machine() -> str:
    """The processor and the number of cores that this program may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {cores()} cores"


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add --dtype, which every program has that runs these models in transformers."""
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the models in transformers")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not finished yet."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/real"))
    parser.add_argument("--output", type=Path, default=Path("results/real"))
    parser.add_argument("--threads", type=int, default=cores())
    add_dtype(parser)
    parser.add_argument("--only", help="names of steps, or how they begin, with commas between them")
    given = parser.parse_args(arguments)
    for name in (MENTOR, *(pair.intern for pair in PAIRS)):
        if not (given.models / name).is_file():
            raise SystemExit(f"real.py: {given.models} holds no {name}; name a folder with the GGUF files.")
    given.output.mkdir(parents=True, exist_ok=True)
    environment = prepare_data(given.data, given.work)
    setting = Setting(given.models, given.work, given.output, given.threads, given.dtype)
    chosen = tuple(given.only.split(",")) if given.only else ("",)
    for step in all_steps(setting):
        if step.name.startswith(chosen) and not step.finished:
            share_training_answers(given.work)
            run(step, environment, given.output / "seconds.jsonl")


if __name__ == "__main__":
    main()
