"""What a mentor's insights do to an intern's answers, from collections of one set of questions.

    python benchmarks/insights.py COLLECTED [COLLECTED …] [--output FILE]

COLLECTED are folders that `lm-eval-tandem collect` wrote, as one for each wording of the prompts, whose name stands for
the wording. For each stage, Markdown with:

- accuracy with Wilson's 95 % interval, and how many answers were right with the insight and wrong without (helped), and
  the reverse (hurt);
- the cost by Eq. 12 as a share of the mentor alone, the mentor's tokens, and the answer's;
- of the insights: the share that the mentor finished, and the share that names the task's own answer (in a sum of small
  numbers this may be chance);
- of the wrong answers: the share whose final value stands in the insight (copied), and of all the share that states no
  final value (no answer).

Use training questions: who has chosen a wording by these figures cannot measure it on the same questions.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.grading.math import answer
from lm_eval_tandem.reports.intervals import wilson
from lm_eval_tandem.training import collected_file
from lm_eval_tandem.training.dataset import Collected

COLUMNS = (
    *("wording", "answered by", "accuracy, %", "helped", "hurt", "cost of mentor's, %", "mentor tokens"),
    *("answer tokens", "finished, %", "names answer, %", "copied, % of wrong", "no answer, %"),
)


@dataclass(frozen=True)
class Texts:
    """What was written at one stage, by question.

    Attributes
    ----------
    insight, target
        What the intern read of the mentor, and the task's own answer.
    stated
        The final value of the intern's answer; None where it states none.
    finished
        Whether the mentor ended before its budget.
    mentor_tokens, answer_tokens
        Numbers of tokens.
    """

    insight: list[str]
    target: list[str]
    stated: list[str | None]
    finished: NDArray[np.bool_]
    mentor_tokens: NDArray[np.float64]
    answer_tokens: NDArray[np.float64]


def texts_of(folder: Path, efforts: Sequence[int]) -> list[Texts]:
    """The texts of every stage, stage 0 first.

    Raises
    ------
    ClassifierError
        The collection holds no texts.
    """
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(folder / collected_file.NAME).to_pylist()
    if not all(row.get("insight") is not None for row in rows):
        raise ClassifierError(
            f"{folder} was collected without its texts; collect again (what the store holds is not generated again)."
        )
    found = []
    for stage, effort in enumerate((0, *efforts)):
        of_stage = [row for row in rows if row["stage"] == stage]
        tokens = np.array([row["mentor_tokens"] for row in of_stage], dtype=np.float64)
        found.append(
            Texts(
                insight=[row["insight"] for row in of_stage],
                target=[row["target"] for row in of_stage],
                stated=[answer.extract(row["answer"]) for row in of_stage],
                finished=tokens < effort,
                mentor_tokens=tokens,
                answer_tokens=np.array([row["intern_tokens"] for row in of_stage], dtype=np.float64),
            )
        )
    return found


def names(text: str, value: str | None) -> bool:
    """Whether a value stands in a text on its own, as 18 does in "= 18." but not in "180" or "1.18"."""
    if not value:
        return False
    return re.search(rf"(?<![\d.,]){re.escape(value)}(?![\d]|[.,]\d)", text) is not None


def percent(share: Any) -> str:
    """A share in whole per cent; a dash for a share of nothing."""
    return "–" if not np.isfinite(share) else f"{100 * share:.0f}"


def share(flags: Sequence[bool]) -> float:
    """The share of true values; NaN of none."""
    return float(np.mean(flags)) if len(flags) else float("nan")


def accuracy(correct: NDArray[np.float64]) -> str:
    """The mean of grades with its interval, in per cent."""
    low, high = wilson(float(correct.sum()), len(correct))
    return f"{100 * correct.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def stage_row(name: str, stage: int, effort: int, data: Collected, texts: Texts, mentor_cost: float) -> list[str]:
    """The line of one stage."""
    right, without = data.correct[:, stage] >= 0.5, data.correct[:, 0] >= 0.5
    wrong = [q for q in range(len(right)) if not right[q]]
    guided = stage > 0
    return [
        name,
        f"intern, stage {stage}: {effort}" if guided else "intern alone",
        accuracy(np.asarray(data.correct[:, stage], dtype=np.float64)),
        str(int((right & ~without).sum())) if guided else "",
        str(int((~right & without).sum())) if guided else "",
        percent(data.cost[:, stage].mean() / mentor_cost),
        f"{texts.mentor_tokens.mean():.0f}" if guided else "",
        f"{texts.answer_tokens.mean():.0f}",
        percent(share(texts.finished.tolist())) if guided else "",
        percent(share([names(*pair) for pair in zip(texts.insight, texts.target, strict=True)])) if guided else "",
        percent(share([names(texts.insight[q], texts.stated[q]) for q in wrong])) if guided else "",
        percent(share([stated is None for stated in texts.stated])),
    ]


def rows_of(folder: Path) -> list[list[str]]:
    """The lines of one collection, the mentor alone last."""
    data, description = collected_file.read(folder)
    efforts = description["efforts"]
    grades, costs = data.others.get("mentor", (None, np.array([np.nan])))
    lines = [
        stage_row(folder.name, stage, effort, data, texts, float(costs.mean()))
        for stage, (effort, texts) in enumerate(zip((0, *efforts), texts_of(folder, efforts), strict=True))
    ]
    if grades is not None:
        lines.append([folder.name, "mentor alone", accuracy(grades), "", "", "100", *[""] * 6])
    return lines


def table(folders: Sequence[Path]) -> str:
    """The table of all collections, in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *[line for folder in folders for line in rows_of(folder)]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("collected", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, help="Markdown file")
    given = parser.parse_args(arguments)
    text = table(given.collected)
    print(text, end="")
    if given.output:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
