"""Evaluates the pair without harness and cascade: `python -m lm_eval_tandem.pair.evaluate`.

It prints, per domain, accuracy and cost on the committed test files for the intern alone ("none"), for the intern with
the mentor's insights cut at each effort, and for the mentor alone. Decoding is greedy, by plain transformers; costs
follow Eq. 12 of the paper, in TFLOPs per question. It is an independent check of what the cascade reports, and of a
pair that has been trained anew.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from lm_eval_tandem.pair import INTERN, MENTOR
from lm_eval_tandem.pair import problems as pb

OPEN, CLOSE = " Insights:", " Steps:"
"""The words that request insights, and those after which the intern answers."""
EFFORTS: list[int] = json.loads((Path(__file__).parent / "profile.json").read_text(encoding="utf-8"))["efforts"]
"""Numbers of mentor tokens: those of the pair's profile, which the harness runs with."""
MAX_ANSWER_TOKENS = 200
TASKS = Path(__file__).parents[2] / "task_configs" / "pair"
_STEP = re.compile(r" \d\) (\w+) (\d+): (\d+) ([-+]) (\d+) = (\d+)")
_SUM = re.compile(r"(\d+) ([-+]) (\d+) = (\d+)")


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_tokens: int, batch: int = 250
) -> list[str]:
    """Generate greedily and return the continuations, without the end token, in the order of the prompts."""
    texts: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch):
        indices = order[first : first + batch]
        inputs = tokenizer(
            [prompts[i] for i in indices], return_tensors="pt", padding=True, return_token_type_ids=False
        ).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=0, eos_token_id=1)
        decoded = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        texts.update(zip(indices, decoded, strict=True))
    return [texts[i] for i in range(len(prompts))]


def answer_of(text: str) -> int | None:
    """Return the integer right after the last `Answer:`; None if there is none."""
    match = re.match(r"\s*(-?\d+)", text.rpartition("Answer:")[2]) if "Answer:" in text else None
    return int(match[1]) if match else None


def check_parts(text: str, problem: pb.Problem) -> dict[str, list[bool]]:
    """Return which parts of an answer are right.

    Returns
    -------
    dict of str to list of bool
        "answer": the result. "names": whether the goods are the problem's, in its order. "price_known" and
        "price_unknown": the price of each good, of those the intern knows and of the others. "sums": each sum.
    """
    steps = _STEP.findall((text.partition(" Action:")[2] or text).partition(" Check:")[0])
    goods = [good for _, good in problem.steps]
    price = dict(zip(goods, problem.prices, strict=True))
    known: list[bool] = []
    unknown: list[bool] = []
    for good, written_price, *_ in steps:
        if good in price:
            (known if good in pb.KNOWN_GOODS else unknown).append(int(written_price) == price[good])
    sums = [int(a) + (int(b) if op == "+" else -int(b)) == int(c) for a, op, b, c in _SUM.findall(text)]
    return {
        "answer": [answer_of(text) == problem.totals[-1]],
        "names": [[good for good, *_ in steps] == goods],
        "price_known": known,
        "price_unknown": unknown,
        "sums": sums,
    }


def evaluate_domain(
    domain: str, count: int, efforts: list[int], pair: dict[str, LlamaForCausalLM], tokenizer: Any
) -> dict[str, Any]:
    """Evaluate every fixed policy on one domain.

    Parameters
    ----------
    domain
        One of `problems.DOMAINS`.
    count
        Number of questions, from the start of the test file.
    efforts
        Numbers of mentor tokens after which the insights are cut, ascending.
    pair
        The models, under "mentor" and "intern".
    tokenizer
        Their tokenizer.

    Returns
    -------
    dict
        "sizes": number of parameters by role. For "none", each effort as text, and "mentor": accuracy in per cent, mean
        tokens of mentor and intern, and mean cost in TFLOPs.
    """
    rows = [json.loads(line) for line in (TASKS / f"{domain}_test.jsonl").open(encoding="utf-8")][:count]
    questions = [row["question"] for row in rows]
    mentor, intern = pair["mentor"], pair["intern"]
    sizes = {role: sum(p.numel() for p in model.parameters()) for role, model in pair.items()}

    def summary(texts: list[str], insight_ids: list[list[int]], author: str) -> dict[str, float]:
        right = sum(answer_of(text) == row["answer"] for text, row in zip(texts, rows, strict=True))
        answer_tokens = sum(len(ids) + 1 for ids in tokenizer(texts).input_ids) / len(rows)
        by_mentor = answer_tokens if author == "mentor" else sum(map(len, insight_ids)) / len(rows)
        by_intern = answer_tokens if author == "intern" else 0.0
        intern_passes = by_mentor * (by_intern > 0) + by_intern  # the intern also reads the insights
        tflops = 2 * (sizes["mentor"] * by_mentor + sizes["intern"] * intern_passes) / 1e12
        accuracy = 100 * right / len(rows)
        return {"acc": accuracy, "mentor_tokens": by_mentor, "intern_tokens": by_intern, "tflops": tflops}

    report = {"none": summary(generate(intern, tokenizer, questions, MAX_ANSWER_TOKENS), [], "intern")}
    insights = generate(mentor, tokenizer, [question + OPEN for question in questions], max(efforts))
    whole_ids = [[*ids, 1] for ids in tokenizer(insights).input_ids]
    for effort in efforts:
        cut_ids = [ids[:effort] for ids in whole_ids]
        texts = tokenizer.batch_decode(cut_ids, skip_special_tokens=True)
        prompts = [question + OPEN + text + CLOSE for question, text in zip(questions, texts, strict=True)]
        report[str(effort)] = summary(generate(intern, tokenizer, prompts, MAX_ANSWER_TOKENS), cut_ids, "intern")
    report["mentor"] = summary(generate(mentor, tokenizer, questions, MAX_ANSWER_TOKENS), [], "mentor")
    return {"sizes": sizes, **report}


def main() -> None:
    """Print one table per domain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="number of questions per domain")
    parser.add_argument("--efforts", default=",".join(map(str, EFFORTS)), help="numbers of mentor tokens, by commas")
    parser.add_argument("--mentor", type=Path, default=MENTOR, help="folder of the mentor")
    parser.add_argument("--intern", type=Path, default=INTERN, help="folder of the intern")
    parser.add_argument("--threads", type=int, default=1, help="number of threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.intern)
    folders = {"mentor": arguments.mentor, "intern": arguments.intern}
    load = AutoModelForCausalLM.from_pretrained
    pair = {role: load(folder, dtype=torch.float32).eval() for role, folder in folders.items()}
    efforts = sorted(int(number) for number in arguments.efforts.split(","))
    for domain in pb.DOMAINS:
        report = evaluate_domain(domain, arguments.count, efforts, pair, tokenizer)
        print(domain, report.pop("sizes"))
        for name, row in report.items():
            print(f"  {name:>8}", *(f"{key} {value:10.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
