"""Trains one model of the pair from scratch: `python -m lm_eval_tandem.pair.train --role mentor` (or `intern`).

The mentor learns the true price of every good. It answers questions in full, and writes insights where a prompt ends
with ` Insights:`. The intern learns the prices of `problems.KNOWN_GOODS`; every other good has a fresh random price in
each of its problems, so that it learns to take such prices from insights, and to be uncertain of them without insights.
Short problems come first.

Weights go to `mentor/` or `intern/` beside this file (`--out` for another folder), the log to `logs/`. A checkpoint is
written every three minutes, and `--resume` continues from it. `evaluate` measures the result.
"""

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lm_eval_tandem.pair import INTERN, MENTOR
from lm_eval_tandem.pair import problems as pb
from lm_eval_tandem.pair import tokenizer as tk
from lm_eval_tandem.pair.evaluate import CLOSE, MAX_ANSWER_TOKENS, OPEN, check_parts, generate


@dataclass(frozen=True)
class Recipe:
    """Shape of a model and how it is trained. The log file starts with these fields.

    Attributes
    ----------
    folder
        Where the weights go.
    width, layers, feed_forward
        Hidden size (a multiple of 32), number of layers, and size of the feed-forward layers.
    rate
        Highest learning rate.
    steps
        Number of optimizer steps.
    prompt_weight
        Weight of the loss on question and insights, relative to 1 on the answer.
    flatness
        Exponent of the goods' popularity (see `problems.ProblemSampler`): below 1, rare goods are trained more often.
    batch_tokens
        Largest number of tokens in a batch, padding included.
    seed
        Seed of the initial weights and of the examples.
    """

    folder: Path
    width: int
    layers: int
    feed_forward: int
    rate: float
    steps: int
    prompt_weight: float
    flatness: float
    batch_tokens: int = 3000
    seed: int = 1234


RECIPES = {
    "mentor": Recipe(MENTOR, 128, 3, 448, 2e-3, 16000, 0.05, 0.5),
    "intern": Recipe(INTERN, 64, 4, 48, 3e-3, 16000, 0.15, 1.0),
}
WARM_UP_STEPS = 200
"""Number of steps over which the learning rate rises to its highest value."""
FULL_PRECISION_FROM = 0.92
"""Share of the run after which a GPU computes in float32; before, its forward pass is autocast to bfloat16."""
INVENTED_PRICES_UNTIL, INVENTED_PRICES_SHARE = 0.6, 0.6
"""Until this share of the run, this share of the intern's problems has random prices for all goods.

It then cannot rely on what it knows, and learns to copy prices from insights.
"""
CURRICULUM = ((0.10, 2), (0.22, 4), (1.01, pb.MAX_STEPS))
"""Until which share of the run, problems have at most how many steps.

In the first of these stages goods are drawn by their natural popularity, whatever the recipe's `flatness`.
"""
EXAMPLES_PER_DRAW = 512
"""Number of examples that are drawn and sorted by length together."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""Token ids and the weight of each token's loss, both of shape (examples, longest example)."""


def build_model(recipe: Recipe, vocabulary: int) -> LlamaForCausalLM:
    """Return a Llama with random weights and attention heads of size 32."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // 32,
        num_key_value_heads=recipe.width // 32,
        head_dim=32,
        max_position_embeddings=tk.MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Example:
    """A training example.

    Attributes
    ----------
    prompt
        Question, and insights where there are any.
    answer
        What the model learns to write.
    insight_share
        Share of the prompt's insights that is kept, before ` Steps:` is appended; None if the prompt stays as it is.
    """

    prompt: str
    answer: str
    insight_share: float | None = None


def draw_example(
    role: str, sampler: pb.ProblemSampler, plain_sampler: pb.ProblemSampler, max_steps: int, rng: random.Random
) -> Example:
    """Draw one training example.

    Parameters
    ----------
    role
        "mentor" or "intern".
    sampler
        Draws problems for examples with insights.
    plain_sampler
        Draws problems for examples without insights.
    max_steps
        Largest number of steps of a problem.
    rng
        Random numbers.
    """
    domain, person, kind = rng.choice(pb.DOMAINS), rng.choice(pb.PEOPLE), rng.random()
    without_insights = kind < (0.5 if role == "mentor" else 0.45)
    problem = (plain_sampler if without_insights else sampler).draw("model", 1, max_steps)
    question = pb.question(problem, domain, person)
    if role == "mentor" and without_insights:
        return Example(question, pb.mentor_answer(problem, domain))
    if role == "mentor":
        return Example(question + OPEN, pb.insights(problem, domain))
    if without_insights:
        return Example(question, CLOSE + pb.intern_answer(problem))
    insight_share = 1.0 if kind < 0.7 else rng.random()
    return Example(question + OPEN + pb.insights(problem, domain), pb.intern_answer(problem), insight_share)


def batches(role: str, recipe: Recipe, progress: dict[str, float], seed: str) -> Iterator[Batch]:
    """Yield batches without end; the examples of a batch have similar lengths.

    Parameters
    ----------
    role
        "mentor" or "intern".
    recipe
        The model's recipe.
    progress
        `progress["share"]` is the share of the run that is done, from 0 to 1; the caller updates it.
    seed
        Seed of the examples.
    """
    rng = random.Random(seed)  # noqa: S311 - sampling of examples, not cryptography
    tokenizer = tk.build()
    has_random_price = (lambda good: good not in pb.KNOWN_GOODS) if role == "intern" else (lambda good: False)
    natural, flat = (
        pb.ProblemSampler(f"{seed} {flatness}", flatness, has_random_price) for flatness in (1.0, recipe.flatness)
    )
    invented = pb.ProblemSampler(f"{seed} invented", 1.0, lambda good: True)
    while True:
        max_steps = next(steps for until, steps in CURRICULUM if progress["share"] < until)
        usual = natural if progress["share"] < CURRICULUM[0][0] else flat
        invent = role == "intern" and progress["share"] < INVENTED_PRICES_UNTIL
        samplers = (
            invented if invent and rng.random() < INVENTED_PRICES_SHARE else usual for _ in range(EXAMPLES_PER_DRAW)
        )
        examples = [draw_example(role, sampler, usual, max_steps, rng) for sampler in samplers]
        groups = _grouped_by_length(_tokenized(examples, tokenizer), recipe.batch_tokens)
        rng.shuffle(groups)
        for group in groups:
            yield _padded(group, recipe.prompt_weight)


TokenIds = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


def _tokenized(examples: list[Example], tokenizer: PreTrainedTokenizerFast) -> list[TokenIds]:
    """The examples as token ids, their insights cut to the share that is kept."""
    open_ids, close_ids = tokenizer(OPEN).input_ids, tokenizer(CLOSE).input_ids
    prompts = tokenizer([example.prompt for example in examples]).input_ids
    answers = tokenizer([example.answer for example in examples]).input_ids
    tokenized = []
    for prompt, answer, example in zip(prompts, answers, examples, strict=True):
        if example.insight_share is not None:
            start = prompt.index(open_ids[0]) + len(open_ids)
            prompt = prompt[: start + round(example.insight_share * (len(prompt) - start))] + close_ids
        tokenized.append((prompt, [*answer, tokenizer.eos_token_id]))
    return tokenized


def _grouped_by_length(tokenized: list[TokenIds], batch_tokens: int) -> list[list[TokenIds]]:
    """Groups of similar length that have at most `batch_tokens` tokens each, padding included."""
    groups: list[list[TokenIds]] = [[]]
    for prompt, answer in sorted(tokenized, key=lambda ids: len(ids[0]) + len(ids[1])):
        if (len(groups[-1]) + 1) * (len(prompt) + len(answer)) > batch_tokens:
            groups.append([])
        groups[-1].append((prompt, answer))
    return groups


def _padded(group: list[TokenIds], prompt_weight: float) -> Batch:
    width = max(len(prompt) + len(answer) for prompt, answer in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    weights = torch.zeros(len(group), width)
    for row, (prompt, answer) in enumerate(group):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        weights[row, : len(prompt)] = prompt_weight
        weights[row, len(prompt) : len(prompt) + len(answer)] = 1.0
    return ids, weights


def measure(
    role: str, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 60
) -> dict[str, float]:
    """Measure a model on problems of the split "train", which the pair's training never uses.

    Returns
    -------
    dict of str to float
        Shares from 0 to 1. For a number of steps n: of right answers of the mentor ("full<n>"), of insights that are
        right to the letter ("insights<n>"), and of right answers of the intern without ("alone<n>") and with insights
        ("told<n>"). Further the parts of `evaluate.check_parts`, such as "alone_price_known".
    """
    checks: dict[str, list[bool]] = {}
    sampler, rng = pb.ProblemSampler("gate"), random.Random("gate")  # noqa: S311 - sampling, not cryptography
    for length in (1, 2, 4, 6):
        problems = [sampler.draw("train", length, length) for _ in range(count)]
        domains = [rng.choice(pb.DOMAINS) for _ in problems]
        questions = [pb.question(p, d, rng.choice(pb.PEOPLE)) for p, d in zip(problems, domains, strict=True)]
        insights = [pb.insights(p, d) for p, d in zip(problems, domains, strict=True)]
        if role == "mentor":
            prompts = {"full": questions, "insights": [question + OPEN for question in questions]}
        else:
            guided = [question + OPEN + text + CLOSE for question, text in zip(questions, insights, strict=True)]
            prompts = {"alone": questions, "told": guided}
        for name, inputs in prompts.items():
            texts = generate(model, tokenizer, inputs, MAX_ANSWER_TOKENS)
            for problem, text, expected in zip(problems, texts, insights, strict=True):
                if name == "insights":
                    checks.setdefault(f"insights{length}", []).append(text == expected)
                    continue
                parts = check_parts(text, problem)
                checks.setdefault(f"{name}{length}", []).append(parts["answer"][0])
                for key in ("names", "sums", "price_known", "price_unknown"):
                    checks.setdefault(f"{name}_{key}", []).extend(parts[key])
    return {key: round(sum(values) / max(1, len(values)), 3) for key, values in sorted(checks.items())}


class TrainingRun:
    """Model, optimizer and counters of a run, with its checkpoints.

    Parameters
    ----------
    role
        "mentor" or "intern".
    recipe
        The model's recipe; its folder receives tokenizer and weights.
    log_file
        Receives one JSON object per checkpoint; the checkpoint itself lies beside it, with the suffix `.state`.
    resume
        Whether to continue from the last checkpoint, if there is one.
    """

    def __init__(self, role: str, recipe: Recipe, log_file: Path, resume: bool) -> None:
        self.role, self.recipe, self.log_file = role, recipe, log_file
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # On a CPU, for matrices this small, casting takes longer than bfloat16 saves.
        self.mixed_precision = self.device == "cuda"
        torch.manual_seed(recipe.seed)
        recipe.folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer = tk.save(recipe.folder)
        self.model = build_model(recipe, len(self.tokenizer)).to(self.device)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), fused=True)
        self.state_file = log_file.with_suffix(".state")
        self.state: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0}
        if resume and self.state_file.exists():
            saved = torch.load(self.state_file, map_location=self.device, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.state = saved["state"]

    def save(self) -> None:
        """Write the checkpoint and the weights; each file is replaced as a whole."""
        checkpoint = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": self.state,
        }
        torch.save(checkpoint, self.state_file.with_suffix(".new"))
        os.replace(self.state_file.with_suffix(".new"), self.state_file)
        new_folder = self.recipe.folder / "new"
        self.model.save_pretrained(new_folder)
        for file in new_folder.iterdir():
            os.replace(file, self.recipe.folder / file.name)
        new_folder.rmdir()

    def set_learning_rate(self, share: float) -> None:
        """Set the rate for a share of the run: a linear warm-up, then a cosine down to 2 % of the highest rate."""
        cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate * min(1.0, self.state["step"] / WARM_UP_STEPS) * cosine

    def step(self, batch: Batch, share: float) -> float:
        """Train on one batch and return the mean loss of the answers' tokens in nats."""
        self.set_learning_rate(share)
        ids, weights = (tensor.to(self.device) for tensor in batch)
        use_bfloat16 = self.mixed_precision and share < FULL_PRECISION_FROM
        with torch.autocast(self.device, torch.bfloat16, enabled=use_bfloat16):
            logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss = (losses * weight).sum() / weight.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.state["step"] += 1
        self.state["tokens"] += int((weight > 0).sum())
        return float((losses.detach() * (weight == 1)).sum() / (weight == 1).sum())

    def measure(self) -> dict[str, float]:
        """Measure the model in evaluation mode."""
        self.model.eval()
        measured = measure(self.role, self.model, self.tokenizer)
        self.model.train()
        return measured


def train(role: str, recipe: Recipe, minutes: float, resume: bool, checkpoint_every: float, log_file: Path) -> None:
    """Train a model to the end of its schedule; the recipe's folder always holds the last checkpoint.

    Parameters
    ----------
    role
        "mentor" or "intern".
    recipe
        The model's recipe.
    minutes
        Time after which the schedule ends, if the recipe's steps have not ended it before.
    resume
        Whether to continue from the last checkpoint.
    checkpoint_every
        Seconds between checkpoints, each of which is measured and logged.
    log_file
        Receives one JSON object per line.
    """
    run = TrainingRun(role, recipe, log_file, resume)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a" if run.state["step"] else "w", encoding="utf-8") as log:

        def write(**fields: object) -> None:
            print(json.dumps(fields), file=log, flush=True)

        size = sum(p.numel() for p in run.model.parameters())
        logged_recipe = {**vars(recipe), "folder": recipe.folder.name}
        precision = "bfloat16" if run.mixed_precision else "float32"
        versions = {"device": run.device, "precision": precision, "torch": torch.__version__}
        write(role=role, parameters=size, recipe=logged_recipe, **versions)
        progress = {"share": 0.0}
        stream = batches(role, recipe, progress, f"{role} {recipe.seed} {run.state['step']}")
        start, last_checkpoint = time.monotonic() - run.state["seconds"], time.monotonic()
        losses: list[float] = []
        while progress["share"] < 1:
            run.state["seconds"] = time.monotonic() - start
            progress["share"] = max(run.state["step"] / recipe.steps, run.state["seconds"] / 60 / minutes)
            share = min(1.0, progress["share"])
            losses.append(run.step(next(stream), share))
            if time.monotonic() - last_checkpoint > checkpoint_every or progress["share"] >= 1:
                run.save()
                counters = {"step": run.state["step"], "tokens": run.state["tokens"]}
                counters |= {"seconds": round(run.state["seconds"]), "share": round(share, 3)}
                write(**counters, answer_loss=round(sum(losses) / len(losses), 4), **run.measure())
                last_checkpoint, losses = time.monotonic(), []


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=RECIPES, required=True, help="the model to train")
    parser.add_argument("--steps", type=int, help="optimizer steps; default: the recipe's")
    parser.add_argument(
        "--width", type=int, help="hidden size of a smaller or larger model, a multiple of 32; default: the recipe's"
    )
    parser.add_argument("--out", type=Path, help="folder for the weights; default: the one that the package reads")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="shorten the schedule to this time; default: no limit"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--look-every", type=float, default=180, help="seconds between checkpoints; default: 180")
    parser.add_argument("--threads", type=int, default=1, help="number of threads of torch; default: 1")
    parser.add_argument("--log", type=Path, help="log file; default: logs/<role>.log beside this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe = RECIPES[given.role]
    changes = {"steps": given.steps or recipe.steps, "folder": given.out or recipe.folder}
    if given.width is not None:
        changes |= {"width": given.width, "feed_forward": given.width * recipe.feed_forward // recipe.width}
    log_file = given.log or Path(__file__).parent / "logs" / f"{given.role}.log"
    train(given.role, Recipe(**{**vars(recipe), **changes}), given.minutes, given.resume, given.look_every, log_file)


if __name__ == "__main__":
    main()
