"""Memory grows with batch and context, not with the number of questions."""

from __future__ import annotations

from pathlib import Path

import pytest

import lm_eval_tandem
from interpreters import python

PEAK = """
    import resource
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval_tandem.model import TandemLM

    torch.set_num_threads(1)
    settings = {{"until": [], "max_gen_toks": 4, "do_sample": False}}
    texts = [f"Mira starts with {{i % 100}} coins: 1) buys a lantern" for i in range({questions})]
    requests = [Instance("generate_until", {{}}, (text, settings), 0, ("t", i, 1)) for i, text in enumerate(texts)]
    lm = TandemLM(batch_size=16, device="cpu", policy="stage:1", efforts="4:8")
    lm.generate_until(requests, disable_tqdm=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_ten_thousand_questions_need_hardly_more_memory_than_a_hundred(tmp_path: Path) -> None:
    package = Path(lm_eval_tandem.__file__).parents[1]
    few, many = (
        int(python(PEAK.format(questions=questions), path=[package], cwd=tmp_path, timeout=900).split()[-1])
        for questions in (100, 10_000)
    )
    assert many <= 1.1 * few, (few, many)
