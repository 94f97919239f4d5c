"""Names that the Hugging Face Hub knows: its licences, its benchmarks and its metrics.

Read in November 2026 from copies of the Hub's documentation (github.com/huggingface/hub-docs: `modelcard.md`,
`eval_results.yaml`, `docs/hub/repositories-licenses.md`, `docs/hub/eval-results.md`). The tasks of the benchmarks stand
in the data sets' own `eval.yaml`, and the documents' examples differ. Those below are the ones that pull requests of
Hugging Face's staff use, and, for `openai/gsm8k` and the main set of GPQA, the converter of Every Eval Ever
(`every_eval_ever/tools/hf_community_evals.py`). Both give the value in percent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown
    """.split()
)
"""Licences that a card may name. `other` is left out: it also needs a name and a link."""

METRICS = {"acc": "accuracy", "acc_norm": "accuracy", "pass@1": "code_eval", "pass_at_1": "code_eval"}
"""The Hub's name of a metric of the harness, where it has another."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that is registered on the Hub, with a leaderboard of its own.

    Attributes
    ----------
    tasks
        Pattern of the names of the harness's tasks, or group of tasks, that ask its questions and let the model write
        its answer.
    dataset, task
        The dataset that holds the leaderboard, and the leaderboard's name there.
    questions
        Number of its questions; results on fewer are no results of the benchmark.
    file
        Name of the file in .eval_results.
    """

    tasks: str
    dataset: str
    task: str
    questions: int
    file: str


BENCHMARKS = (
    Benchmark(r"(tandem_)?gsm8k|gsm8k_cot(_zeroshot|_llama)?", "openai/gsm8k", "gsm8k", 1319, "gsm8k"),
    Benchmark(r"gpqa_diamond_(cot|generative)_\w+", "Idavidrein/gpqa", "diamond", 198, "gpqa_diamond"),
    Benchmark(r"gpqa_main_(cot|generative)_\w+", "Idavidrein/gpqa", "main", 448, "gpqa_main"),
    Benchmark(r"mmlu_pro", "TIGER-Lab/MMLU-Pro", "mmlu_pro", 12032, "mmlu_pro"),
    Benchmark(r"hle", "cais/hle", "hle", 2500, "hle"),
)
"""The registered benchmarks that a text model can answer with a task of the harness. The Hub's own list is
`HfApi().list_datasets(benchmark=True)`."""

GRADES = ("acc", "exact_match")
"""Metrics of the harness whose mean is the accuracy that these leaderboards rank by."""


def benchmark_of(domain: str) -> Benchmark | None:
    """The registered benchmark that a task or group of tasks of the harness is; None where it is none.

    Examples
    --------
    >>> benchmark_of("tandem_gsm8k").dataset
    'openai/gsm8k'
    >>> benchmark_of("tandem_math500") is None
    True
    """
    return next((one for one in BENCHMARKS if re.fullmatch(one.tasks, domain)), None)
