"""Compress results so that they can be kept in a repository.

    python benchmarks/packing.py FOLDER [CLASSIFIER] [--without_questions]

Replaces every JSON-lines file below FOLDER (samples of the harness, ledgers) with one compressed by xz; the same files
give the same bytes. A report reads both forms alike. Removed is what is repeated or takes much room:

- of samples the hashes of documents, prompts and targets, a prompt that is a field of its document, and responses that
  no filter changed;
- of ledgers the log-probabilities and entropies of single tokens at fixed stages. With CLASSIFIER (a folder, or the
  name of one that ships) its score there is stored instead, as `score`, `probe_tokens` and `judged_by` (the
  classifier's checksum). Features and seconds keep three digits.

Prints the new files. `make results` calls it.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_tandem.digits import significant
from lm_eval_tandem.ledger_checksums import JUDGED_LATER, shortened, was_fixed
from lm_eval_tandem.reports.sources import classifiers, judge_scores
from lm_eval_tandem.reports.sources.files import read_lines

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

HASHES = ("doc_hash", "prompt_hash", "target_hash")
"""Fields of samples that are removed; hashes are more than half of what compression leaves."""
OF_BENCHMARK = ("doc", "arguments", "target")
"""Fields of samples that are removed where a benchmark's questions are not to be passed on."""


def pack(folder: Path, classifier: Sufficiency | None = None, questions: bool = True) -> list[Path]:
    """Replace every JSON-lines file below a folder with a compressed one and return the new files.

    Parameters
    ----------
    folder
        The results of runs.
    classifier
        Whose scores ledgers of fixed stages get; None for no scores.
    questions
        Whether samples keep the benchmark's questions and targets.
    """
    packed = []
    for file in folder.rglob("results_*.json"):
        file.write_text(without_place(file.read_text(encoding="utf-8")), encoding="utf-8")
    for file in sorted(folder.rglob("*.jsonl")):
        lines = [json.loads(line) for line in read_lines(file)]
        if file.name.startswith("samples_"):
            lines = [without_repetition(sample) for sample in lines]
            removed = () if questions else OF_BENCHMARK
            lines = [{name: value for name, value in sample.items() if name not in removed} for sample in lines]
        elif "stages" in lines[-1]:  # a ledger: a header and then records
            header = json.loads(without_place(json.dumps(lines[0])))
            lines = [header, *[with_score(record, classifier) for record in lines[1:]]]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        target = file.with_name(file.name + ".xz")
        target.write_bytes(lzma.compress(text.encode(), preset=9))
        file.unlink()
        packed.append(target)
    return packed


def without_place(text: str) -> str:
    r"""Return a results file, or a ledger's header, without the folders in which this repository and its models were.

    Paths of task files begin with task_configs/, and of other absolute paths only the last part is left.

    Examples
    --------
    >>> without_place('{"model_args": "mentor=/home/ada/models/big.gguf,store=/tmp/s.sqlite", "url": "http://a/b"}')
    '{"model_args": "mentor=big.gguf,store=s.sqlite", "url": "http://a/b"}'
    """
    text = re.sub(r'"[^"]*/(task_configs/[^"]*)"', r'"\1"', text)
    return re.sub(r"""(?<=["'=])/(?:[^/\s",='\\]+/)+(?=[^/\s",='\\])""", "", text)


def without_repetition(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a sample without hashes and without what its other fields, or the results file, have already."""
    removed = {*HASHES}
    if sample.get("filtered_resps") == [responses[0] for responses in sample.get("resps") or [[None]]]:
        removed.add("filtered_resps")
    document = sample.get("doc")
    prompts = [request.get("arg_0") for request in (sample.get("arguments") or {}).values()]
    if isinstance(document, dict) and all(prompt in document.values() for prompt in prompts):
        removed.add("arguments")
    return {name: value for name, value in sample.items() if name not in removed}


def with_score(record: dict[str, Any], classifier: Sufficiency | None) -> dict[str, Any]:
    """Return a ledger record without measurements of single tokens, and with the classifier's score if it has one."""
    packed = shortened(record)
    vector = judge_scores.input_vector(record, classifier) if classifier is not None and was_fixed(record) else None
    if classifier is not None and vector is not None:
        score = float(classifier.estimator.predict_proba(vector[None])[0, 1])
        length = 0 if classifier.probe is None else int(judge_scores.probe_length(record["stages"][-1], classifier))
        scored = (float(significant(score, 7)), length, classifier.config["sha256"])
        packed["stages"][-1] |= dict(zip(JUDGED_LATER, scored, strict=True))
    return packed


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("classifier", nargs="?")
    parser.add_argument("--without_questions", action="store_true")
    given = parser.parse_args()
    classifier = None if given.classifier is None else classifiers.load(given.classifier)
    for file in pack(given.folder, classifier, questions=not given.without_questions):
        print(file)


if __name__ == "__main__":
    main()
