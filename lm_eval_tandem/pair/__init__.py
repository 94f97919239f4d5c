"""The bundled pair: a tiny mentor and a tiny intern, on which everything can be tried without a download or a GPU.

The weights are in `mentor/` and `intern/`, their training logs in `logs/`. The pair was trained from scratch on
synthetic arithmetic: `problems` generates the tasks, `tokenizer` the vocabulary, `train` the weights, and `evaluate`
measures the result without the harness. Nothing else in the package imports these four modules.

To retrain it: `python -m lm_eval_tandem.pair.train --role mentor`, then the same with `--role intern`, then
`python -m lm_eval_tandem.pair.evaluate`. Each takes well under an hour on two CPU cores.
"""

from pathlib import Path

MENTOR = Path(__file__).parent / "mentor"
INTERN = Path(__file__).parent / "intern"

__all__ = ["INTERN", "MENTOR"]
