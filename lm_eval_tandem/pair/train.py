"""Train one role of the pair from scratch: `python -m lm_eval_tandem.pair.train --role mentor` (or `intern`).

The mentor learns the true price of every good; it answers questions in full, and writes insights when asked for them.
The intern learns the prices of the goods it is to know; every other good has a fresh price in each of its problems, so
that it learns to take prices from insights and to be unsure where it is not told. Short chains come first.
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

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lm_eval_tandem.pair import INTERN, MENTOR
from lm_eval_tandem.pair import problems as pb
from lm_eval_tandem.pair import tokenizer as tk
from lm_eval_tandem.pair.evaluate import CLOSE, OPEN, generate, inspect


@dataclass(frozen=True)
class Recipe:
    """What differs between the roles."""

    folder: Path
    width: int
    layers: int
    feed_forward: int
    rate: float
    steps: int
    prompt_weight: float  # of the loss on question and insights, beside 1 on the answer
    flatness: float  # below 1 the rare goods come up more often than they are asked for
    batch_tokens: int = 3000
    seed: int = 1234


RECIPES = {
    "mentor": Recipe(MENTOR, 128, 3, 448, 2e-3, 16000, 0.05, 0.5),
    "intern": Recipe(INTERN, 64, 4, 48, 3e-3, 16000, 0.15, 1.0),
}
WARM_UP = 200
FULL_PRECISION_FROM = 0.92  # share of the run; before it a GPU's forward pass is autocast to bfloat16
COPYING_UNTIL = 0.6  # till then many insights shown to the intern hold invented prices, so that it learns to read them
# Up to which share of the run chains are at most so long; the first stage also keeps to the goods' natural popularity.
CURRICULUM = ((0.10, 2), (0.22, 4), (1.01, pb.MAX_STEPS))


def build_model(recipe: Recipe, vocabulary: int) -> LlamaForCausalLM:
    """A fresh Llama with heads of 32."""
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


Batch = tuple[torch.Tensor, torch.Tensor]  # ids and the weight of each one's loss


@dataclass(frozen=True)
class Example:
    """Prompt and answer; `kept` is the share of the insights at the prompt's end that is left (None: no insights)."""

    prompt: str
    answer: str
    kept: float | None = None


def example(role: str, source: pb.Source, untold: pb.Source, longest: int, draw: random.Random) -> Example:
    """One example; `untold` gives the problems of which the intern is not told anything."""
    domain, person, kind = draw.choice(pb.DOMAINS), draw.choice(pb.PEOPLE), draw.random()
    alone = kind < (0.5 if role == "mentor" else 0.45)
    problem = (untold if alone else source).problem("model", 1, longest)
    question = pb.question(problem, domain, person)
    if role == "mentor" and alone:
        return Example(question, pb.mentor_answer(problem, domain))
    if role == "mentor":
        return Example(question + OPEN, pb.insights(problem, domain))
    if alone:
        return Example(question, CLOSE + pb.intern_answer(problem))
    kept = 1.0 if kind < 0.7 else draw.random()
    return Example(question + OPEN + pb.insights(problem, domain), pb.intern_answer(problem), kept)


def batches(role: str, recipe: Recipe, progress: dict[str, float], seed: str) -> Iterator[Batch]:
    """Endless batches of (ids, weights), neighbours in length together; `progress["share"]` says how far the run is."""
    draw = random.Random(seed)
    encode = tk.build()
    unsure = (lambda good: good not in pb.KNOWN) if role == "intern" else (lambda good: False)
    natural, flat = (pb.Source(f"{seed} {f}", f, unsure) for f in (1.0, recipe.flatness))
    invented = pb.Source(f"{seed} invented", 1.0, lambda good: True)
    close, opening = encode(CLOSE).input_ids, encode(OPEN).input_ids
    while True:
        longest = next(most for until, most in CURRICULUM if progress["share"] < until)
        usual = natural if progress["share"] < CURRICULUM[0][0] else flat
        copying = role == "intern" and progress["share"] < COPYING_UNTIL
        sources = (invented if copying and draw.random() < 0.6 else usual for _ in range(512))
        drawn = [example(role, source, usual, longest, draw) for source in sources]
        prompts = encode([item.prompt for item in drawn]).input_ids
        answers = encode([item.answer for item in drawn]).input_ids
        pool = []
        for prompt, answer, item in zip(prompts, answers, drawn, strict=True):
            if item.kept is not None:
                start = prompt.index(opening[0]) + len(opening)
                prompt = prompt[: start + round(item.kept * (len(prompt) - start))] + close
            pool.append((prompt, [*answer, encode.eos_token_id]))
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for prompt, answer in pool:
            if (len(groups[-1]) + 1) * (len(prompt) + len(answer)) > recipe.batch_tokens:
                groups.append([])
            groups[-1].append((prompt, answer))
        draw.shuffle(groups)
        for group in groups:
            width = max(len(prompt) + len(answer) for prompt, answer in group)
            ids = torch.zeros(len(group), width, dtype=torch.long)
            weights = torch.zeros(len(group), width)
            for row, (prompt, answer) in enumerate(group):
                ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
                weights[row, : len(prompt)] = recipe.prompt_weight
                weights[row, len(prompt) : len(prompt) + len(answer)] = 1.0
            yield ids, weights


def gate(role: str, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 60) -> dict[str, float]:
    """A quick look at unseen problems: whole answers by length, names, prices by band, sums."""
    found: dict[str, list[bool]] = {}
    source, draw = pb.Source("gate"), random.Random("gate")
    for length in (1, 2, 4, 6):
        given = [source.problem("train", length, length) for _ in range(count)]
        domains = [draw.choice(pb.DOMAINS) for _ in given]
        asked = [pb.question(p, d, draw.choice(pb.PEOPLE)) for p, d in zip(given, domains, strict=True)]
        told = [pb.insights(p, d) for p, d in zip(given, domains, strict=True)]
        if role == "mentor":
            shown = {"full": asked, "insights": [q + OPEN for q in asked]}
        else:
            shown = {"alone": asked, "told": [q + OPEN + i + CLOSE for q, i in zip(asked, told, strict=True)]}
        for name, prompts in shown.items():
            for problem, text, wanted in zip(given, generate(model, tokenizer, prompts, 200), told, strict=True):
                if name == "insights":
                    found.setdefault(f"insights{length}", []).append(text == wanted)
                    continue
                seen = inspect(text, problem)
                found.setdefault(f"{name}{length}", []).append(seen["answer"][0])
                for key in ("names", "sums", "price_known", "price_unknown"):
                    found.setdefault(f"{name}_{key}", []).extend(seen[key])
    return {key: round(sum(values) / max(1, len(values)), 3) for key, values in sorted(found.items())}


def train(role: str, recipe: Recipe, minutes: float, resume: bool, look_every: float, log_file: Path) -> None:
    """The whole run; what is in the folder is always the last checkpoint."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    halves = device == "cuda"  # on a CPU, for matrices this small, the casts take longer than what they spare
    torch.manual_seed(recipe.seed)
    recipe.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tk.save(recipe.folder)
    model = build_model(recipe, len(tokenizer)).to(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), fused=True)
    state_file = log_file.with_suffix(".state")
    state = {"step": 0, "tokens": 0, "seconds": 0.0}
    if resume and state_file.exists():
        saved = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    log_file.parent.mkdir(parents=True, exist_ok=True)
    log = log_file.open("a" if state["step"] else "w", encoding="utf-8")

    def say(**fields: object) -> None:
        print(json.dumps(fields), file=log, flush=True)

    def save() -> None:
        whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
        torch.save(whole, state_file.with_suffix(".new"))
        os.replace(state_file.with_suffix(".new"), state_file)
        fresh = recipe.folder / "new"
        model.save_pretrained(fresh)
        for file in fresh.iterdir():
            os.replace(file, recipe.folder / file.name)
        fresh.rmdir()

    size = sum(p.numel() for p in model.parameters())
    told = {**vars(recipe), "folder": recipe.folder.name}
    precision = "bfloat16" if halves else "float32"
    say(role=role, parameters=size, recipe=told, device=device, precision=precision, torch=torch.__version__)
    progress = {"share": 0.0}
    stream = batches(role, recipe, progress, f"{role} {recipe.seed} {state['step']}")
    began, looked, losses = time.monotonic() - state["seconds"], time.monotonic(), []
    while progress["share"] < 1:
        state["seconds"] = time.monotonic() - began
        progress["share"] = max(state["step"] / recipe.steps, state["seconds"] / 60 / minutes)
        turn = min(1.0, progress["share"])
        for group in optimizer.param_groups:
            cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * turn)) / 2
            group["lr"] = recipe.rate * min(1.0, state["step"] / WARM_UP) * cosine
        ids, weights = (tensor.to(device) for tensor in next(stream))
        with torch.autocast(device, torch.bfloat16, enabled=halves and turn < FULL_PRECISION_FROM):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        each = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss = (each * weight).sum() / weight.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state["step"] += 1
        state["tokens"] += int((weight > 0).sum())
        losses.append(float((each.detach() * (weight == 1)).sum() / (weight == 1).sum()))
        if time.monotonic() - looked > look_every or progress["share"] >= 1:
            save()
            model.eval()
            short = {"step": state["step"], "tokens": state["tokens"], "seconds": round(state["seconds"])}
            short |= {"share": round(turn, 3), "answer_loss": round(sum(losses) / len(losses), 4)}
            say(**short, **gate(role, model, tokenizer))
            model.train()
            looked, losses = time.monotonic(), []
    log.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=RECIPES, required=True)
    parser.add_argument("--steps", type=int, help="optimizer steps; default: the recipe's")
    parser.add_argument(
        "--width", type=int, help="of a smaller or larger model, a multiple of 32; default: the recipe's"
    )
    parser.add_argument("--out", type=Path, help="folder for the weights; default: where the package looks for them")
    parser.add_argument("--minutes", type=float, default=math.inf, help="shorten the schedule to so much time")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--look-every", type=float, default=180, help="seconds between checkpoints and gates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log", type=Path, help="default: logs/<role>.log beside this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe = RECIPES[given.role]
    changed = {"steps": given.steps or recipe.steps, "folder": given.out or recipe.folder}
    if given.width is not None:
        changed |= {"width": given.width, "feed_forward": given.width * recipe.feed_forward // recipe.width}
    log_file = given.log or Path(__file__).parent / "logs" / f"{given.role}.log"
    train(given.role, Recipe(**{**vars(recipe), **changed}), given.minutes, given.resume, given.look_every, log_file)


if __name__ == "__main__":
    main()
