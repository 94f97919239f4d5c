"""A stand-alone check of the pair, without harness or cascade: `python -m lm_eval_tandem.pair.evaluate`.

The intern alone, the intern with the mentor's own insights cut at each budget, and the mentor alone, on the committed
test files; greedy, plain transformers. Costs are Eq. 12 of the paper, in TFLOPs a question.
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
EFFORTS = (18, 27, 40)
TASKS = Path(__file__).parents[2] / "task_configs" / "pair"
_STEP = re.compile(r" \d\) (\w+) (\d+): (\d+) ([-+]) (\d+) = (\d+)")
_SUM = re.compile(r"(\d+) ([-+]) (\d+) = (\d+)")


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], most: int, batch: int = 250
) -> list[str]:
    """Greedy continuations without the end token, in the order of the prompts."""
    texts: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        given = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True, return_token_type_ids=False)
        given = given.to(model.device)
        ids = model.generate(**given, max_new_tokens=most, do_sample=False, pad_token_id=0, eos_token_id=1)
        decoded = tokenizer.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        texts.update(zip(chosen, decoded, strict=True))
    return [texts[i] for i in range(len(prompts))]


def answer_of(text: str) -> int | None:
    """The integer right after the last `Answer:`."""
    found = re.match(r"\s*(-?\d+)", text.rpartition("Answer:")[2]) if "Answer:" in text else None
    return int(found[1]) if found else None


def inspect(text: str, problem: pb.Problem) -> dict[str, list[bool]]:
    """What is right in an answer: result, names in order, prices of known and of other goods, sums."""
    body = (text.partition(" Action:")[2] or text).partition(" Check:")[0]
    steps = _STEP.findall(body)
    wanted = [good for _, good in problem.steps]
    price = dict(zip(wanted, problem.prices, strict=True))
    known: list[bool] = []
    unknown: list[bool] = []
    for good, said, *_ in steps:
        if good in price:
            (known if good in pb.KNOWN else unknown).append(int(said) == price[good])
    sums = [int(a) + (int(b) if op == "+" else -int(b)) == int(c) for a, op, b, c in _SUM.findall(text)]
    return {
        "answer": [answer_of(text) == problem.totals[-1]],
        "names": [[good for good, *_ in steps] == wanted],
        "price_known": known,
        "price_unknown": unknown,
        "sums": sums,
    }


def check(domain: str, count: int, efforts: list[int], pair: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Accuracy in per cent, mean tokens and mean Eq.-12 cost of every fixed policy on one domain."""
    rows = [json.loads(line) for line in (TASKS / f"{domain}_test.jsonl").open(encoding="utf-8")][:count]
    questions = [row["question"] for row in rows]
    mentor, intern = pair["mentor"], pair["intern"]
    sizes = {role: sum(p.numel() for p in model.parameters()) for role, model in pair.items()}

    def figures(texts: list[str], told: list[list[int]], author: str) -> dict[str, float]:
        right = sum(answer_of(text) == row["answer"] for text, row in zip(texts, rows, strict=True))
        written = sum(len(ids) + 1 for ids in tokenizer(texts).input_ids) / len(rows)
        large = written if author == "mentor" else sum(map(len, told)) / len(rows)
        small = written if author == "intern" else 0.0
        tflops = 2 * (sizes["mentor"] * large + sizes["intern"] * (large * (small > 0) + small)) / 1e12
        return {"acc": 100 * right / len(rows), "mentor_tokens": large, "intern_tokens": small, "tflops": tflops}

    report = {"none": figures(generate(intern, tokenizer, questions, 200), [], "intern")}
    insights = generate(mentor, tokenizer, [question + OPEN for question in questions], max(efforts))
    whole = [[*ids, 1] for ids in tokenizer(insights).input_ids]
    for effort in efforts:
        told = [ids[:effort] for ids in whole]
        texts = tokenizer.batch_decode(told, skip_special_tokens=True)
        prompts = [question + OPEN + text + CLOSE for question, text in zip(questions, texts, strict=True)]
        report[str(effort)] = figures(generate(intern, tokenizer, prompts, 200), told, "intern")
    report["mentor"] = figures(generate(mentor, tokenizer, questions, 200), [], "mentor")
    return {"sizes": sizes, **report}


def main() -> None:
    """Print a table a domain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--efforts", default=",".join(map(str, EFFORTS)))
    parser.add_argument("--mentor", type=Path, default=MENTOR)
    parser.add_argument("--intern", type=Path, default=INTERN)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.intern)
    folders = {"mentor": given.mentor, "intern": given.intern}
    load = AutoModelForCausalLM.from_pretrained
    pair = {role: load(folder, dtype=torch.float32).eval() for role, folder in folders.items()}
    efforts = sorted(int(number) for number in given.efforts.split(","))
    for domain in pb.DOMAINS:
        report = check(domain, given.count, efforts, pair, tokenizer)
        print(domain, report.pop("sizes"))
        for name, row in report.items():
            print(f"  {name:>8}", *(f"{key} {value:10.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
