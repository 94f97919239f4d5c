"""The bundled pair as tests load it, and its questions as the harness asks them."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_tandem.pair import problems

COMMON: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch_size": 16}


def instances(n: int = 12, repeats: int = 1, **generation: Any) -> list[Instance]:
    asked = {"until": [], "max_gen_toks": 90, "do_sample": False, **generation}
    rows = problems.rows("math", "test", n)
    return [
        Instance("generate_until", {}, (str(r["question"]), asked), 0, ("t", i, repeats)) for i, r in enumerate(rows)
    ]
