"""`python benchmarks/packing.py FOLDER [CLASSIFIER]`: results as they are kept in a repository, small.

Samples and ledgers are compressed (xz); the same files make the same bytes. Left out is what says nothing that the
samples do not: the harness's hashes of documents, prompts and targets, which are more than half of what compression
leaves, a prompt that is a field of its document, and responses that no filter changed. Of the looks at fixed stages the
measures of single tokens are left out, in place of which the classifier's score of them is kept (`score`,
`probe_tokens`, and the classifier's checksum as `judged_by`), and features and seconds keep three digits.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_tandem.digits import significant
from lm_eval_tandem.reports.sources import scores
from lm_eval_tandem.reports.sources.runs import lines_of

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

HASHES = ("doc_hash", "prompt_hash", "target_hash")
LONG = ("answer_logprob", "answer_entropy", "parts")


def pack(folder: Path, judge: Sufficiency | None = None) -> list[Path]:
    """Replace every JSON-lines file below the folder by a packed one; returns the new files."""
    packed = []
    for file in sorted(folder.rglob("*.jsonl")):
        lines = [json.loads(line) for line in lines_of(file)]
        if file.name.startswith("samples_"):
            lines = [without_repetition(line) for line in lines]
        elif "stages" in lines[-1]:
            lines = [lines[0], *[shortened(record, judge) for record in lines[1:]]]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        target = file.with_name(file.name + ".xz")
        target.write_bytes(lzma.compress(text.encode(), preset=9))
        file.unlink()
        packed.append(target)
    return packed


def without_repetition(line: dict[str, Any]) -> dict[str, Any]:
    """A sample without what it says twice; how answers were generated stands in the results file."""
    left_out = {*HASHES}
    if line.get("filtered_resps") == [responses[0] for responses in line.get("resps") or [[None]]]:
        left_out.add("filtered_resps")
    document = line.get("doc")
    prompts = [request.get("arg_0") for request in (line.get("arguments") or {}).values()]
    if isinstance(document, dict) and all(prompt in document.values() for prompt in prompts):
        left_out.add("arguments")
    return {name: value for name, value in line.items() if name not in left_out}


def shortened(record: dict[str, Any], judge: Sufficiency | None) -> dict[str, Any]:
    """A record of a ledger without the measures of single tokens, what the judge says of them in their place."""
    looks = [{k: v for k, v in look.items() if k not in LONG} for look in record["stages"]]
    shown = None if judge is None or record["reason"] not in ("fixed", "alone") else scores.vector(record, judge)
    if judge is not None and shown is not None:
        score = float(judge.estimator.predict_proba(shown[None])[0, 1])
        taken = 0 if judge.probe is None else int(scores.probed(record["stages"][-1], judge))
        told = {"score": float(significant(score, 7)), "probe_tokens": taken, "judged_by": judge.config["sha256"]}
        looks[-1] |= told
    for look in looks:
        if look.get("features"):
            look["features"] = [rounded(value) for value in look["features"]]
    return with_short_seconds({**record, "stages": [with_short_seconds(look) for look in looks]})


def with_short_seconds(told: dict[str, Any]) -> dict[str, Any]:
    """The same with seconds of three digits, which is more than clocks repeat."""
    return {name: rounded(value) if name.endswith("seconds") else value for name, value in told.items()}


def rounded(value: float) -> float:
    """Three digits of a number."""
    return float(significant(value, 3))


def main(folder: str, classifier: str | None = None) -> None:
    """The command."""
    from lm_eval_tandem.reports.report import classifier_of

    for made in pack(Path(folder), None if classifier is None else classifier_of(classifier)):
        print(made)


if __name__ == "__main__":
    main(*sys.argv[1:])
