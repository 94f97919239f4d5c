"""What a judge loses where a server tells the log-probabilities of a few likely tokens alone.

    python benchmarks/top_entropies.py MODEL QUESTIONS [--limit 48] [--tokens 64] [--tops 5,20,100] [--output FILE]

MODEL is a GGUF file or a folder that transformers reads, on which it runs in float32; QUESTIONS a JSON Lines file with
a `question` in each row. The model begins its answers, greedily; each token's entropy over the whole vocabulary is
compared with the estimate from its K most likely tokens (`engines.entropy`). Markdown, for each K:

- the error per token in nats, and the mean of the bound that an engine states for it (`entropy_error`);
- how many tokens come out on the other side of a limit that a probe may have (`training.recipes.PROBES`);
- the rank correlation of the answers' mean entropies, by which a judge tells answers apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_tandem.engines.entropy import entropy_bounds, estimate_entropy
from lm_eval_tandem.training.recipes import PROBES

COLUMNS = ("K", "mean error", "largest error", "mean bound", "beyond a limit, %", "rank correlation of means")
LIMITS = sorted({probe.max_entropy for probe in PROBES if np.isfinite(probe.max_entropy)})

Floats = NDArray[np.float64]
Begun = tuple[Floats, dict[int, Floats]]
"""Of one answer's n tokens: the entropies (n,), and by K the log-probabilities (n, K) of the most likely tokens."""


class Model:
    """A model in float32 on the CPU, and its tokenizer."""

    def __init__(self, path: Path) -> None:
        given = {"gguf_file": path.name} if path.is_file() else {}
        folder = path.parent if path.is_file() else path
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **given)
        self.network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given).eval()

    @torch.inference_mode()
    def begin(self, question: str, tokens: int, tops: Sequence[int]) -> Begun:
        """The beginning of an answer, measured."""
        ids = self.tokenizer(self._prompt(question), return_tensors="pt").input_ids
        done = self.network.generate(
            ids, max_new_tokens=tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        logprobs = torch.log_softmax(torch.cat(done.logits).double(), dim=-1)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        return entropies.numpy(), {top: logprobs.topk(top).values.numpy() for top in tops}

    def _prompt(self, question: str) -> str:
        if self.tokenizer.chat_template is None:
            return question
        messages = [{"role": "user", "content": question}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def row(top: int, answers: Sequence[Begun], vocabulary: int) -> list[str]:
    """The table's row for one K."""
    exact = [entropies for entropies, _ in answers]
    estimates = [np.asarray(estimate_entropy(tops[top], vocabulary), dtype=np.float64) for _, tops in answers]
    bounds = [entropy_bounds(tops[top], vocabulary) for _, tops in answers]
    bound = np.concatenate([(most - least) / 2 for least, most in bounds])
    whole, estimated = np.concatenate(exact), np.concatenate(estimates)
    error = np.abs(estimated - whole)
    crossed = np.mean([(estimated > limit) != (whole > limit) for limit in LIMITS])
    means = spearmanr([each.mean() for each in exact], [each.mean() for each in estimates]).statistic
    numbers = (error.mean(), error.max(), bound.mean())
    return [str(top), *(f"{number:.4f}" for number in numbers), f"{100 * crossed:.2f}", f"{means:.4f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--tops", default="5,20,100")
    parser.add_argument("--output", type=Path, help="Markdown file")
    given = parser.parse_args(arguments)
    tops = [int(number) for number in given.tops.split(",")]
    rows = [json.loads(line) for line in given.questions.read_text(encoding="utf-8").splitlines()[: given.limit]]
    model = Model(given.model)
    answers = [model.begin(row["question"], given.tokens, tops) for row in tqdm(rows, desc="answers begun")]
    vocabulary = model.network.config.vocab_size
    lines = [COLUMNS, ["---:"] * len(COLUMNS), *(row(top, answers, vocabulary) for top in tops)]
    tokens = sum(len(entropies) for entropies, _ in answers)
    text = (
        f"{given.model.name}, the first {given.tokens} tokens of {len(answers)} answers to questions of "
        f"{given.questions.name} ({tokens:,} tokens, vocabulary of {vocabulary:,}), in nats:\n\n"
    )
    text += "".join(f"| {' | '.join(line)} |\n" for line in lines)
    print(text, end="")
    if given.output:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
