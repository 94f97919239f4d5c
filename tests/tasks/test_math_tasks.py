"""The mathematics tasks through lm-eval's own command line, offline, from local files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

pytest.importorskip("math_verify", reason="the extra lm-eval-tandem[math] is not installed")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

import shared_data
from lm_eval_tandem import _paths, pair
from lm_eval_tandem.errors import TandemError
from lm_eval_tandem.grading.math.answer import boxed
from tasks.in_process import lm_eval
from tasks.replay import Replay

TASKS = _paths.task_configs()
LM_EVAL = Path(sys.executable).with_name("lm_eval")
REPLAY = Path(__file__).with_name("replay.py")
SUBJECTS = "algebra counting_and_probability geometry intermediate_algebra number_theory prealgebra precalculus".split()
SCORES = {"acc", "acc_normalised", "disagree", "no_answer", "grader_failed"}
COSTS = {"truncated", "length", "mentor_tokens", "tflops", "stage"}

MATH = [
    ("What is half of one?", r"It is $1/2$, so \boxed{\frac{1}{2}}."),
    ("Solve $x - 3 = 4$.", r"Adding, $x = \boxed{7}$."),
    ("How wide is the right angle?", r"It has \fbox{90^\circ}."),
    ("Which $x$ satisfy $x^2 = 4$?", r"Both roots: \boxed{2,-2}."),
    ("Which $x$ satisfy $x^2 + x = 2$?", r"Either $x = \boxed{-2}$ or $x = \boxed{1}$."),
]
GSM8K = [
    ("Ann has 2 apples and buys 3. How many has she?", "2 + 3 = <<2+3=5>>5\n#### 5"),
    ("A car costs $1,000 and is sold at double. For how much?", "2 * 1000 = 2000\n#### 2,000"),
]
AIME = [("Find the number of divisors of 2024.", 16), ("Find the remainder of 1025 divided by 1000.", 25)]


def lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a local file of a few rows for every task, and with the right reply to each of them."""
    base = tmp_path_factory.mktemp("data")
    replies: dict[str, str] = {}
    styles = [
        "{}",
        "<think>Is it \\boxed{{0}}?</think>{}",
        "Is it \\boxed{{0}}? No.</think>\n\n**{}**",
        "<think></think>The answer is \\boxed{{0}}. Wait: {}",
    ]
    for subject in SUBJECTS:
        for split in ("", "_train"):
            rows = [
                {"problem": f"{subject}{split}: {q}", "level": "Level 1", "type": "", "solution": s} for q, s in MATH
            ]
            (base / f"tandem_math_{subject}{split}.jsonl").write_text(lines(rows))
            for i, row in enumerate(rows):
                replies[row["problem"]] = styles[i % len(styles)].format(row["solution"])
    rows = [{"problem": f"500: {question}", "solution": s, "answer": boxed(s)} for question, s in MATH]
    (base / "tandem_math500.jsonl").write_text(lines(rows))
    replies |= {row["problem"]: f"The answer is {row['answer']}." for row in rows}
    for split in ("", "_train"):
        rows = [{"question": f"grade school{split}: {question}", "answer": answer} for question, answer in GSM8K]
        (base / f"tandem_gsm8k{split}.jsonl").write_text(lines(rows))
        replies |= {row["question"]: row["answer"] for row in rows}
    (base / "tandem_aime24.jsonl").write_text(lines([{"Problem": q, "Answer": number} for q, number in AIME]))
    replies |= {question: rf"\boxed{{{number:03}}}" for question, number in AIME}
    (base / "replies.json").write_text(json.dumps(replies))
    return base


def options_for(out: Path, *options: str) -> list[str]:
    """The options of a run that writes its results and samples to a folder."""
    return ["run", "--include_path", str(TASKS), "--output_path", str(out), "--log_samples", *options]


def run(program: Sequence[str], data: Path, out: Path, *options: str) -> str:
    """Run a command line in a process of its own, from local files, without a network; what it printed."""
    environment = {**os.environ, "TANDEM_DATA": str(data), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(_paths.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    command = [*program, *options_for(out, *options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False, cwd=data)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results(out: Path) -> dict[str, dict[str, Any]]:
    """Metrics by task or group, `{task: {metric: value}}`, without standard errors."""
    (file,) = out.rglob("results_*.json")
    found = json.loads(file.read_text())
    tables = {**found["results"], **found.get("groups", {})}
    return {
        task: {
            key.split(",")[0]: value for key, value in table.items() if key.endswith(",none") and "_stderr" not in key
        }
        for task, table in tables.items()
    }


def samples(out: Path, task: str) -> list[dict[str, Any]]:
    (file,) = out.rglob(f"samples_{task}_2*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def replay(gold: Path) -> list[str]:
    return ["--model", "replay", "--model_args", f"gold={gold}"]


EVERY = "tandem_math500,tandem_math,tandem_math_train,tandem_gsm8k,tandem_gsm8k_train,tandem_aime24"


@pytest.mark.parametrize(
    ("chat", "own_process"),
    [pytest.param((), True, marks=pytest.mark.slow), (("--apply_chat_template",), False)],
    ids=["plain", "chat"],
)
def test_gold_answers_score_one_on_every_task(
    chat: tuple[str, ...], own_process: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*replay(folder / "replies.json"), "--tasks", EVERY, *chat]
    if own_process:
        run([sys.executable, str(REPLAY)], folder, tmp_path, *options)
    else:
        monkeypatch.setenv("TANDEM_DATA", str(folder))
        lm_eval(*options_for(tmp_path, *options))
    found = results(tmp_path)
    assert len(found) == 4 + 14 + 2
    for task, metrics in found.items():
        expected = {"acc": 1.0, "acc_normalised": 1.0, "disagree": 0.0, "no_answer": 0.0, "grader_failed": 0.0}
        assert metrics == expected, task
    prompts = [sample["arguments"]["gen_args_0"] for sample in samples(tmp_path, "tandem_aime24")]
    assert all(r"\boxed{}" in prompt["arg_0"] for prompt in prompts)
    assert all(prompt["arg_1"]["until"] == [] and prompt["arg_1"]["max_gen_toks"] == 8192 for prompt in prompts)
    assert sorted(sample["filtered_resps"][0] for sample in samples(tmp_path, "tandem_aime24")) == [["016"], ["025"]]


@pytest.mark.slow
def test_real_rows_score_one_with_their_own_solutions(tmp_path: Path) -> None:
    math500, gsm8k = shared_data.rows("math500_first200.jsonl"), shared_data.rows("gsm8k_test.jsonl")
    train = shared_data.rows("gsm8k_train_1000.jsonl")
    files = {"tandem_math500": math500, "tandem_gsm8k": gsm8k, "tandem_gsm8k_train": train}
    for task, rows in files.items():
        (tmp_path / f"{task}.jsonl").write_text(lines(rows))
    replies = {row["problem"]: row["solution"] for row in math500} | {
        row["question"]: row["answer"] for row in gsm8k + train
    }
    (tmp_path / "replies.json").write_text(json.dumps(replies))
    options = [*replay(tmp_path / "replies.json"), "--tasks", ",".join(files)]
    run([sys.executable, str(REPLAY)], tmp_path, tmp_path / "out", *options)
    found = results(tmp_path / "out")
    assert {task: (metrics["acc"], metrics["acc_normalised"]) for task, metrics in found.items()} == dict.fromkeys(
        files, (1.0, 1.0)
    )


@pytest.mark.slow
@pytest.mark.parametrize("chat", [(), ("--apply_chat_template",)], ids=["plain", "chat"])
def test_the_bundled_intern_with_model_hf(chat: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    model = ["--model", "hf", "--model_args", f"pretrained={pair.INTERN},dtype=float32", "--device", "cpu"]
    options = ["--tasks", EVERY, "--gen_kwargs", "max_gen_toks=64", "--batch_size", "16", *chat]
    printed = run([str(LM_EVAL)], folder, tmp_path, *model, *options)
    found = results(tmp_path)
    assert len(found) == 4 + 14 + 2
    assert all(set(metrics) == SCORES and metrics["acc"] < 0.5 for metrics in found.values())
    assert not COSTS & set(printed.replace("|", " ").split())


def knows_tandem() -> bool:
    """Whether plain `lm_eval` knows the model, which it does where the wheel is installed."""
    probe = [sys.executable, "-c", "import sys; print('_lm_eval_tandem_hook' in sys.modules)"]
    return subprocess.run(probe, capture_output=True, text=True, check=True).stdout.strip() == "True"


@pytest.mark.parametrize(
    ("chat", "own_process"),
    [((), False), pytest.param(("--apply_chat_template",), True, marks=pytest.mark.slow)],
    ids=["plain", "chat"],
)
def test_the_bundled_pair_with_model_tandem(
    chat: tuple[str, ...],
    own_process: bool,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ["--model", "tandem", "--model_args", f"ledger={tmp_path / 'ledger.jsonl'}"]
    options = [*model, "--tasks", EVERY, "--gen_kwargs", "max_gen_toks=16", "--batch_size", "16", *chat]
    if own_process:
        program = [str(LM_EVAL)] if knows_tandem() else [sys.executable, "-m", "lm_eval_tandem"]
        printed = run(program, folder, tmp_path, *options)
    else:
        monkeypatch.setenv("TANDEM_DATA", str(folder))
        lm_eval(*options_for(tmp_path, *options, "--device", "cpu"))
        printed = capsys.readouterr().out
    found = results(tmp_path)
    assert len(found) == 4 + 14 + 2
    for metrics in found.values():
        assert set(metrics) == SCORES | COSTS
        assert metrics["acc"] < 0.5
        assert metrics["tflops"] > 0
        assert metrics["length"] > 0
    assert set(printed.replace("|", " ").split()) >= COSTS


def load(task: str) -> Any:
    loaded = manager().load(task)["tasks"][task]
    assert loaded.dataset  # release 0.5 of lm-eval loads the documents when they are first used
    return loaded


def manager(*folders: Path) -> TaskManager:
    return TaskManager(include_path=[str(TASKS), *map(str, folders)], include_defaults=False)


def evaluate(replies: Any, task: str, folder: Path, *others: Path, **arguments: Any) -> dict[str, float]:
    """The scores of a task with the model `replay`, in this process."""
    (folder / "replies.json").write_text(json.dumps(replies))
    model = Replay(str(folder / "replies.json"), **arguments)
    chat = bool(arguments)
    found = simple_evaluate(
        model=model, tasks=[task], task_manager=manager(*others), apply_chat_template=chat, bootstrap_iters=0
    )
    return {key.split(",")[0]: value for key, value in found["results"][task].items() if key.split(",")[0] in SCORES}


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write two local documents of tandem_gsm8k, and of a task that includes it; return their questions."""
    monkeypatch.setenv("TANDEM_DATA", str(tmp_path))
    rows = [{"question": question, "answer": answer} for question, answer in GSM8K]
    for task in ("tandem_gsm8k", "tandem_gsm8k_4"):
        (tmp_path / f"{task}.jsonl").write_text(lines(rows))
    return [row["question"] for row in rows]


def test_repeats_count_by_their_mean(questions: list[str], tmp_path: Path) -> None:
    (tmp_path / "repeated.yaml").write_text(
        f"include: {TASKS / 'math' / 'tandem_gsm8k.yaml'}\ntask: tandem_gsm8k_4\nrepeats: 4\n"
    )
    replies = [[r"\boxed{5}", r"\boxed{6}", "who knows", r"\boxed{5}"], r"\boxed{2000}"]
    found = evaluate(dict(zip(questions, replies, strict=True)), "tandem_gsm8k_4", tmp_path, tmp_path)
    assert found == {"acc": 0.75, "acc_normalised": 0.75, "disagree": 0.0, "no_answer": 0.125, "grader_failed": 0.0}


@pytest.mark.parametrize(("last", "no_answer"), [(r"Hm.</think>\boxed{2000}", 0.5), (r"\boxed{2000}", 0.0)])
def test_a_thought_that_the_prompt_opened_and_nothing_closed_holds_no_answer(
    questions: list[str], last: str, no_answer: float, tmp_path: Path
) -> None:
    replies = dict(zip(questions, [r"Perhaps \boxed{5}", last], strict=True))
    found = evaluate(replies, "tandem_gsm8k", tmp_path, opened=True)
    assert found["no_answer"] == no_answer
    assert found["acc"] == 1 - no_answer


def test_the_costs_of_a_tandem_are_reported(questions: list[str], tmp_path: Path) -> None:
    costs = {"length": 50.0, "mentor_tokens": 20.0, "tflops": 0.5, "stage": 2.0, "truncated": 1.0}
    task = load("tandem_gsm8k")
    response = type("Response", (str,), {"metrics": {**costs, "other": 1.0}})(r"\boxed{5}")
    for prompt, expected in (("Q", 0.0), ("Q<think>", 1.0)):
        document = task.dataset["test"][0]
        instance = Instance("generate_until", document, (prompt, {}), idx=0, task_name="tandem_gsm8k", doc_id=0)
        instance.resps = [response]
        task._instances = [instance]
        task.apply_filters()
        metrics = task.process_results(instance.doc, [instance.filtered_resps["none"]])
        assert {name: metrics[name] for name in COSTS} == costs
        assert set(metrics) == SCORES | COSTS
        assert metrics["no_answer"] == expected


def test_boxes_that_are_neighbours_are_one_gold_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_DATA", str(folder))
    golds = [doc["gold"] for doc in load("tandem_math_algebra").eval_docs]
    assert golds == [r"\frac{1}{2}", "7", r"90^\circ", "2,-2", "-2, 1"]


@pytest.mark.parametrize("opening", ["<think>", "[THINK]", "◁think▷"])
def test_a_prompt_that_opens_a_thought_in_any_tag_makes_a_reply_without_its_end_cut_off(
    questions: list[str], opening: str
) -> None:
    task = load("tandem_gsm8k")
    response = type("Response", (str,), {"metrics": {"truncated": 1.0}})(r"\boxed{5}")
    instance = Instance(
        "generate_until", task.dataset["test"][0], (f"Q{opening}", {}), idx=0, task_name="tandem_gsm8k", doc_id=0
    )
    instance.resps = [response]
    task._instances = [instance]
    task.apply_filters()
    assert instance.filtered_resps["none"][0].metrics["no_answer"] == 1.0


def test_a_missing_file_field_or_gold_answer_is_named_in_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_DATA", str(tmp_path))
    with pytest.raises(TandemError, match=r"tandem_math500\.jsonl"):
        load("tandem_math500")
    (tmp_path / "tandem_math500.jsonl").write_text('{"problem": "1?", "solution": "1"}\n')
    with pytest.raises(TandemError, match="document 1 has no field answer"):
        load("tandem_math500")
    (tmp_path / "tandem_math_algebra.jsonl").write_text('{"problem": "1?", "solution": "1"}\n')
    with pytest.raises(TandemError, match=r"solution of 1 of 1 documents.* has no boxed answer"):
        load("tandem_math_algebra")


def test_without_math_verify_the_task_refuses_when_it_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_DATA", str(folder))
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(TandemError, match=r'pip install "\.\[math\]" in a checkout'):
        load("tandem_math500")


@pytest.mark.parametrize(
    ("task", "dataset", "split"),
    [
        ("tandem_math500", ("HuggingFaceH4/MATH-500", None), "test"),
        ("tandem_math_number_theory", ("EleutherAI/hendrycks_math", "number_theory"), "test"),
        ("tandem_math_number_theory_train", ("EleutherAI/hendrycks_math", "number_theory"), "train"),
        ("tandem_gsm8k", ("openai/gsm8k", "main"), "test"),
        ("tandem_gsm8k_train", ("openai/gsm8k", "main"), "train"),
        ("tandem_aime24", ("Maxwell-Jia/AIME_2024", None), "train"),
    ],
)
def test_without_tandem_data_documents_come_from_the_hub(
    task: str, dataset: tuple[str, str | None], split: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded_datasets = []

    def from_hub(path: str, name: str | None = None, split: str | None = None) -> datasets.Dataset:
        loaded_datasets.append(((path, name), split))
        return datasets.Dataset.from_json(str(folder / f"{task}.jsonl"), cache_dir=str(folder / "cache"))

    monkeypatch.delenv("TANDEM_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    loaded = load(task)
    assert loaded_datasets == [(dataset, split)]
    assert all(doc["gold"] for doc in loaded.eval_docs)
