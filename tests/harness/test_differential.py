"""Random sets of arguments: a policy of one model is `--model hf`, and a cascade that stops at stage N is `stage:N`.

Under sampling, where a probe and the rest of its answer have a seed each, `stage:N` is itself at another batch size.
Every set is drawn from its index alone. A failing one is printed and can be run by itself:

    TANDEM_FIRST=123 TANDEM_COUNT=1 python -m pytest tests/harness/test_differential.py -m slow -s
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import architectures
from lm_eval_tandem.errors import TandemError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.pair import problems

FIRST, COUNT = int(os.environ.get("TANDEM_FIRST", "0")), int(os.environ.get("TANDEM_COUNT", "500"))
KINDS = (
    *("llama", "qwen2", "qwen3", "gpt2", "gpt_neo", "mpt", "bloom", "gemma2", "mistral", "phi", "opt", "falcon"),
    *("gpt_neox", "falcon_alibi", "qwen3_5", "lfm2"),
)
SCRIPTS = ("Answer", " 3)", "Ответ", "答案", "。", "الجواب", "उत्तर", "é", "\n\n", "🙂")
"""Stop strings of five scripts, and of characters that take several tokens."""
WRONG: tuple[dict[str, Any], ...] = (
    {"policy": "stage:9"},
    {"policy": "stage:²"},
    {"efforts": "5:3"},
    {"efforts": "0:3"},
    {"thinking": "both", "think_end_token": None},
    {"guidance": "none"},
    {"batch_size": "many"},
    {"top_p": 1.5, "do_sample": True},
    {"top_k": -2, "do_sample": True},
    {"min_p": 2.0, "do_sample": True},
    {"repetition_penalty": -1.0},
    {"temperature": -1.0, "do_sample": True},
    {"max_gen_toks": 0},
    {"max_gen_toks": 100_000},
    {"num_beams": 3},
    {"thresholds": "2:2"},
)
"""Arguments that have to be refused."""
GENERATION = {"do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_gen_toks", "num_beams"}


@dataclass
class Case:
    """One set: what runs, with which model arguments, and what it is asked."""

    mode: str
    """"intern" or "mentor" (compared with `--model hf`), "stage" (a fixed stage with a cascade), or "wrong"."""
    kinds: tuple[str, str]
    """The architecture of mentor and intern."""
    arguments: dict[str, Any]
    generation: dict[str, Any]
    texts: list[str]
    stops: list[list[str | None]]
    """Of each question; None stands for a part of the answer without stop strings."""
    chat: bool
    stage: int
    """The stage at which the cascade stops."""

    @classmethod
    def draw(cls, index: int) -> Case:
        """The set with this index."""
        rng = random.Random(f"differential {index}")
        mode = rng.choice(["intern", "intern", "mentor", "stage", "stage", "stage", "wrong"])
        efforts = sorted(rng.sample(range(1, 9), rng.randint(1, 4)))
        arguments: dict[str, Any] = {
            "batch_size": rng.choice([1, 2, 3, 7, 16]),
            "efforts": ":".join(map(str, efforts)),
            "insights": rng.choice(["cutoff", "cutoff", "staged"]),
            "guidance": rng.choice(["guided", "continuation"]),
            "seed": rng.randint(0, 9),
        }
        if rng.random() < 0.3:
            arguments |= {"think_end_token": rng.choice([".", ":", " 3"])}
            arguments |= {"thinking": rng.choice(["both", "none", "mentor", "intern"])}
        generation: dict[str, Any] = {"do_sample": False, "max_gen_toks": rng.choice([1, 5, 17, 40])}
        kind = rng.choice(["greedy", "greedy", "penalty", "top_k=1", "sampled"])
        if kind == "penalty":
            generation["repetition_penalty"] = 1.3
        elif kind == "top_k=1":  # which is greedy again
            generation |= {"do_sample": True, "temperature": 0.7, "top_k": 1}
        elif kind == "sampled" and mode == "stage":  # `--model hf` draws all rows of a batch from one stream
            generation |= {"do_sample": True, "temperature": 1.1, "top_p": 0.9, "min_p": 0.01}
        texts = questions(rng, n := rng.randint(3, 9))
        # `--model hf` stops in its thinking, too: a stop string that holds the thinking's end would show only that
        allowed = [stop for stop in SCRIPTS if arguments.get("think_end_token", stop + "no part") not in stop]
        stops = [rng.sample([*allowed, None, None], rng.randint(0, 3)) for _ in range(n)]
        kinds, chat, stage = (rng.choice(KINDS), rng.choice(KINDS)), rng.random() < 0.4, rng.randint(0, len(efforts))
        case = cls(mode, kinds, arguments, generation, texts, stops, chat, stage)
        if mode == "wrong":
            wrong = rng.choice(WRONG)
            case.generation |= {name: value for name, value in wrong.items() if name in GENERATION}
            case.arguments |= {name: value for name, value in wrong.items() if name not in GENERATION}
        return case


def questions(rng: random.Random, n: int) -> list[str]:
    """Questions of both domains, alone, after few-shot examples, in another script, or nearly nothing."""
    pool = [str(row["question"]) for domain in ("math", "code") for row in problems.rows(domain, "test", 40)]
    found = []
    for _ in range(n):
        text = rng.choice(pool)
        form = rng.random()
        if form < 0.3:
            text = "\n\n".join([rng.choice(pool), text])
        elif form < 0.5:
            text = rng.choice(SCRIPTS) + " " + text[: rng.randint(1, 40)].rstrip()
        elif form < 0.6:
            text = rng.choice(["x", " ", "\n"])
        found.append(text)
    return found


@dataclass
class Runner:
    """Runs cases; models are made once for each architecture and role."""

    base: Path

    def folder(self, role: str, kind: str) -> str:
        folder = self.base / role / kind
        if not folder.exists():
            architectures.save(folder, kind, seed=("mentor", "intern").index(role))
        return str(folder)

    def folders(self, case: Case) -> dict[str, str]:
        return {role: self.folder(role, kind) for role, kind in zip(("mentor", "intern"), case.kinds, strict=True)}

    def wording(self) -> Path:
        """Short prompts, with a deeper pass for `insights=staged`."""
        file = self.base / "prompts.json"
        words = {"request": " Insights:", "open": " Insights:", "close": " Steps:", "deepen": " Deeper:"}
        file.write_text(json.dumps(words))
        return file

    def instances(self, case: Case, lm: Any, stops: list[list[str]]) -> list[Instance]:
        """The questions as the harness asks them of this model."""
        found = []
        for i, (text, until) in enumerate(zip(case.texts, stops, strict=True)):
            context = lm.apply_chat_template(conversation(text)) if case.chat else text
            found.append(Instance("generate_until", {}, (context, {**case.generation, "until": until}), 0, ("t", i, 1)))
        return found

    def check(self, case: Case) -> str:
        """What was found: "same" or "refused"; AssertionError where it is neither."""
        reference = self.reference(case, [[] for _ in case.texts]) if case.mode in ("intern", "mentor") else None
        plain = reference or ["The answer is 7."] * len(case.texts)
        stops = [
            [text[len(text) // 2 :][:3] if stop is None else stop for stop in own if stop or len(text) > 5]
            for own, text in zip(case.stops, plain, strict=True)
        ]
        if reference is not None:
            return self.compare(self.reference(case, stops), self.answers(case, case.mode, stops))
        fixed = self.answers(case, f"stage:{case.stage}", stops)
        if case.mode == "wrong":
            assert fixed is None, "nothing was refused"
            return "refused"
        if case.generation["do_sample"] and case.generation.get("top_k") != 1:
            other = replace(case, arguments={**case.arguments, "batch_size": 4})
            return self.compare(fixed, self.answers(other, f"stage:{case.stage}", stops))
        return self.compare(fixed, self.answers(case, "cascade", stops))

    @staticmethod
    def compare(expected: list[str] | None, found: list[str] | None) -> str:
        if expected is None or found is None:
            return "refused"
        differing = [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b and b != SKIPPED]
        first = differing[0] if differing else 0
        assert not differing, f"answers {differing} differ: {expected[first]!r} became {found[first]!r}"
        return "same"

    def reference(self, case: Case, stops: list[list[str]]) -> list[str]:
        """The answers of lm-eval's own class, one by one, where no padding plays a part."""
        path = self.folders(case)[case.mode]
        thinks = case.arguments.get("thinking", "auto")
        more = {} if thinks == "auto" else {"enable_thinking": thinks in (case.mode, "both")}
        end = case.arguments.get("think_end_token")
        lm = HFLM(pretrained=path, dtype="float32", device="cpu", batch_size=1, think_end_token=end, **more)
        return lm.generate_until(self.instances(case, lm, stops), disable_tqdm=True)

    def answers(self, case: Case, policy: str, stops: list[list[str]]) -> list[str] | None:
        """The answers under a policy; None where it is refused, which has to be done in one line.

        Answers of a cascade for which another stage was chosen, because the mentor ended before, are `SKIPPED`.
        """
        arguments = {
            "policy": policy,
            "prompts": str(self.wording()),
            "dtype": "float32",
            "device": "cpu",
            **case.arguments,
        }
        if policy == "cascade":
            efforts = case.arguments["efforts"].count(":") + 1
            thresholds = ["1"] * case.stage + ["0"] * (efforts + 1 - case.stage)
            arguments |= {"classifier": "pair", "thresholds": ":".join(thresholds)}
        lm = None
        try:
            lm = TandemLM(**self.folders(case), **arguments)
            found = lm.generate_until(self.instances(case, lm, stops), disable_tqdm=True)
        except TandemError as refusal:
            print(f"refused: {refusal}")
            if "\n" in str(refusal):
                raise ValueError("refused in several lines") from refusal
            return None
        finally:
            if lm is not None:
                lm.close()
        stages = {record.doc_id: record.stage if policy == "cascade" else case.stage for record in lm.records}
        return [str(text) if stages[i] == case.stage else SKIPPED for i, text in enumerate(found)]


SKIPPED = "(another stage was chosen)"


def conversation(text: str) -> list[dict[str, str]]:
    """A text as a conversation: what stands before its last paragraph becomes a worked example."""
    *shots, last = text.split("\n\n")
    history = [{"role": "system", "content": "Be brief."}]
    for shot in shots:
        history += [{"role": "user", "content": shot}, {"role": "assistant", "content": " Answer: 1"}]
    return [*history, {"role": "user", "content": last}]


@pytest.mark.slow
def test_random_arguments_give_the_answers_of_their_plain_counterparts(tmp_path: Path) -> None:
    runner, outcomes, failures = Runner(tmp_path), {"same": 0, "refused": 0}, []
    for index in range(FIRST, FIRST + COUNT):
        case = Case.draw(index)
        try:
            outcomes[outcome := runner.check(case)] += 1
            print(f"set {index}: {outcome}", flush=True)
        except Exception as error:
            failures.append(index)
            print(f"\nset {index}: {type(error).__name__}: {error}\n  {case}", flush=True)
    print(f"\n{outcomes}, failing: {failures}")
    assert not failures
    assert outcomes["same"] >= COUNT // 2
