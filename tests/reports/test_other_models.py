"""Other models beside tandem's: joined by document, costs that are known, and a warning where questions differ.

The runs are real: tandem on the bundled pair, the harness's hf on the intern's weights, and its API models against a
server on the loopback that generates with the same weights. So where they were asked alike, they have to agree.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import command, options_of, save_task
from engines.http.openai_server import serving
from lm_eval_tandem import cli, pair
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.formats import html, latex, markdown, spreadsheet
from lm_eval_tandem.reports.report import report
from lm_eval_tandem.reports.sections.same_questions import differences
from lm_eval_tandem.reports.sources import harness_files, reading
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.grouping import group
from lm_eval_tandem.reports.sources.joining import join
from lm_eval_tandem.reports.sources.other_models import GivenCosts
from lm_eval_tandem.reports.sources.question_settings import NO_TEMPLATE, SERVERS_TEMPLATE, chat_template, generation
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import NOT_KNOWN, Missing, Number, Report, Table
from reports.world import World
from tasks.in_process import lm_eval

TASK = "tandem_pair_math"
QUESTIONS = 12
PRICES = {"intern_price_input": 2, "intern_price_cached": 0.5, "intern_price_output": 8}
KNOWN = GivenCosts.read(
    ["tiny=188416"],
    [f"intern={pair.INTERN}", f"tiny={pair.INTERN}/tokenizer.json"],
    ["intern=2:0.5:8", "hf intern=2:0.5:8", "tiny=2:8"],
)
KNOWN_OF_HF = GivenCosts.read([], [f"intern={pair.INTERN}"])
RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs for each way to run: tandem, hf and api alike, and more that differ in something."""
    base = tmp_path_factory.mktemp("other")

    def run(
        name: str, arguments: Sequence[str], *more: str, limit: Sequence[str] = ("--limit", str(QUESTIONS))
    ) -> None:
        lm_eval(*options_of(arguments), *limit, "--output_path", str(base / name), "--log_samples", *more)

    for policy in ("intern", "cascade"):
        run("tandem", command(TASK, policy=policy, mentor="pair", intern="pair", **PRICES))
    hf = command(TASK, "hf", pretrained=pair.INTERN, dtype="float32")
    run("hf", hf)
    run("hf-few", hf, limit=("--limit", "5"))
    run("hf-elsewhere", hf, limit=("--samples", json.dumps({TASK: [100, 101]})))
    run("hf-short", hf, "--gen_kwargs", "max_gen_toks=60")
    with serving(Path(pair.INTERN)) as server:
        for name, kind, path, more in (
            ("api", "local-completions", "completions", ()),
            ("chat", "local-chat-completions", "chat/completions", ("--apply_chat_template",)),
        ):
            asked = command(TASK, kind, base_url=f"{server.url}/{path}", tokenizer_backend=None)
            asked[asked.index("--model_args") + 1] += ",model=tiny"
            run(name, asked, "--batch_size", "1", *more)
        assert server.generated > 0
    return base


def read(folders: Sequence[Path], given: GivenCosts | None = None) -> list[Run]:
    return reading.read(folders, given=given).runs


def tables(made: Report) -> dict[str, Table]:
    return {table.name: table for table in made.tables}


def table_of(made: Report, section: str) -> Table:
    (found,) = [table for name, table in tables(made).items() if name.startswith(f"{section}-{TASK.replace('_', '-')}")]
    return found


def row(table: Table, label: str) -> dict[str, Any]:
    return next(dict(zip(table.columns, cells, strict=True)) for cells in table.rows if cells[0] == label)


def names(made: Report) -> list[str]:
    return [section.name for section in made.sections]


def missing(made: Report, section: str) -> list[Missing]:
    (found,) = [one for one in made.sections if one.name == section]
    return [part for part in found.parts if isinstance(part, Missing)]


def comparison_of(*folders: Path) -> Comparison:
    (comparison,) = group(read(folders))
    return comparison


def run_of(folder: Path, given: GivenCosts | None = None) -> Run:
    (run,) = read([folder], given=given)
    return run


def changed(folder: Path, target: Path, results: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Return a copy of a folder of runs whose results files have been changed."""
    shutil.copytree(folder, target)
    for file in target.rglob("results_*.json"):
        content = json.loads(file.read_text())
        if results is not None:
            results(content)
        file.write_text(json.dumps(content))
    return target


# --- side by side


def test_other_models_are_in_tables_with_paired_tests_and_dashes_where_nothing_is_known(runs: Path) -> None:
    made = report([runs / "tandem", runs / "hf", runs / "api"])
    policies, compared = table_of(made, "policies"), table_of(made, "compared")
    labels = ["hf intern", "local-completions tiny"]
    assert [str(cells[0]) for cells in policies.rows] == ["intern", "cascade", *labels]
    intern = row(policies, "intern")
    for label in labels:
        assert row(policies, label)["accuracy %"].value == intern["accuracy %"].value
        assert row(policies, label)["length (tokens)"] == NOT_KNOWN
        tested = row(compared, label)
        alone = row(compared, "intern")
        for column in ("McNemar p", "correct only with cascade / only with this policy"):
            assert tested[column] == alone[column]
        assert tested["cascade: accuracy difference (points)"] == alone["cascade: accuracy difference (points)"]
        assert tested["cascade: cost in % of this policy's"] == NOT_KNOWN
    assert "same-questions" not in names(made), "all were asked alike"
    reasons = [
        (part.reason, part.command) for part in missing(made, "trade-off") if "the cost is not known" in part.reason
    ]
    assert [command for _, command in reasons] == [
        "lm-eval-tandem report RUNS --tokenizer intern=FOLDER",  # the harness's hf records its parameters
        "lm-eval-tandem report RUNS --tokenizer tiny=FOLDER --parameters tiny=NUMBER",
    ]
    facts = row(table_of(made, "other-models"), "hf intern")
    assert facts["parameters"] == "188,416"
    assert facts["questions in common"] == "12 of 12"


def test_the_cost_of_the_same_answers_is_that_of_tandem_s_intern(runs: Path) -> None:
    made = report([runs / "tandem", runs / "hf", runs / "api"], given=KNOWN)
    policies, dollars = table_of(made, "policies"), table_of(made, "dollars")
    intern, paid = row(policies, "intern"), row(dollars, "intern")
    for label in ("hf intern", "local-completions tiny"):
        for column in ("length (tokens)", "cost (MFLOPs)"):
            assert row(policies, label)[column] == intern[column]
        assert row(dollars, label)["all: $ per 1,000"] == paid["all: $ per 1,000"]
        assert row(table_of(made, "compared"), label)["cascade: cost in % of this policy's"].value > 100
    alone = next(run for run in read([runs / "tandem"]) if run.policy == "intern")
    hf = run_of(runs / "hf", KNOWN_OF_HF)
    assert np.array_equal(hf.measures["length"], alone.measures["length"])
    assert hf.measures["tflops"] == pytest.approx(alone.measures["tflops"], rel=1e-12)
    assert "hf intern 2 (input), 0.5 (cached), 8 (output)" in dollars.caption
    assert not [part for part in missing(made, "trade-off") if "the cost is not known" in part.reason]
    (figure,) = [figure for figure in made.figures if figure.name.startswith("trade-off")]
    assert "hf intern" in figure.svg
    assert "local-completions tiny" in figure.svg
    (line,) = [line for line in made.environment if line.startswith("hf intern: ")]
    assert line == "hf intern: …/intern, 188,416 parameters"


def test_every_format_has_the_other_models_and_the_warning(runs: Path) -> None:
    made = report([runs / "tandem", runs / "hf", runs / "hf-short"])
    for render in (markdown.render, html.render, latex.render):
        text = render(made)
        assert "hf intern, max_gen_toks 60" in text.replace("\\_", "_")
        assert "12 of 12" in text, "the section on other models"
        assert str(pair.INTERN) not in text
    assert "## Not the same questions?" in markdown.render(made)
    compared = table_of(made, "compared")
    assert NOT_KNOWN in markdown.render(made)
    assert NOT_KNOWN not in spreadsheet.render(compared), "a column of numbers holds nothing else"


def test_other_models_alone_are_compared_without_tandem(runs: Path) -> None:
    made = report([runs / "hf", runs / "hf-short"])
    assert [cells[0] for cells in table_of(made, "policies").rows] == [
        "hf intern, max_gen_toks 60",
        "hf intern, max_gen_toks 200",
    ]
    assert len(table_of(made, "same-questions").rows) == 1
    (gap, *_) = missing(made, "compared")
    assert "--model_args policy=cascade,mentor=MENTOR,intern=INTERN,ledger=RUNS/ledger-" in gap.command


# --- the questions in common


def test_a_run_on_some_questions_is_compared_on_the_common_ones(runs: Path) -> None:
    made = report([runs / "tandem", runs / "hf-few", runs / "api"], given=KNOWN)
    assert "hf intern" not in [str(cells[0]) for cells in table_of(made, "policies").rows]
    common = table_of(made, "in-common")
    cells = row(common, "hf intern")
    assert cells["questions"] == "5"
    by_policy = {run.policy: run for run in read([runs / "tandem"])}
    assert cells["accuracy %"].value == pytest.approx(100 * by_policy["intern"].grades[:5].mean())
    assert cells["cascade: accuracy %"].value == pytest.approx(100 * by_policy["cascade"].grades[:5].mean())
    ratio = by_policy["cascade"].measures["tflops"][:5].mean() / by_policy["intern"].measures["tflops"][:5].mean()
    assert cells["cascade: cost in % of this run's"].value == pytest.approx(100 * ratio)
    warning = table_of(made, "same-questions")
    assert [tuple(cells) for cells in warning.rows] == [
        ("hf intern", "questions in common", "5 of its 5", "5 of its 12")
    ]


def test_a_run_with_no_question_in_common_is_named_and_compared_with_nothing(runs: Path) -> None:
    made = report([runs / "tandem", runs / "hf-elsewhere"])
    (gap,) = missing(made, "other-models")
    assert gap.reason.startswith(f"hf intern answered none of the 12 questions of {TASK}, the bundled pair, so ")
    assert "hf intern" not in [str(cells[0]) for cells in table_of(made, "policies").rows]
    assert not [name for name in tables(made) if name.startswith("in-common")]


def test_a_task_that_tandem_did_not_run_is_named(runs: Path, tmp_path: Path) -> None:
    def rename(results: dict[str, Any]) -> None:
        results["configs"] = {"coins": results["configs"][TASK]}

    other = changed(runs / "hf", tmp_path / "hf", rename)
    (samples,) = other.rglob("samples_*")
    samples.rename(samples.with_name(samples.name.replace(TASK, "coins")))
    (gap,) = missing(report([runs / "tandem", other]), "other-models")
    assert gap.reason.startswith("Tandem has no run on coins, so ")
    assert " --tasks coins " in gap.command


def test_more_questions_than_tandem_s_are_left_out(runs: Path, tmp_path: Path) -> None:
    few = changed(runs / "tandem", tmp_path / "few")
    for samples in few.rglob("samples_*"):
        lines = samples.read_text().splitlines(keepends=True)
        samples.write_text("".join(line for line in lines if json.loads(line)["doc_id"] < 5))
    comparison = comparison_of(few, runs / "hf")
    assert comparison.n_questions == 5
    assert [run.name for run in comparison.others] == ["hf intern"]
    assert not comparison.partial


def test_documents_are_joined_by_their_content_where_numbers_have_moved(runs: Path, tmp_path: Path) -> None:
    moved = changed(runs / "hf", tmp_path / "moved")
    (samples,) = moved.rglob("samples_*")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    samples.write_text("".join(json.dumps({**line, "doc_id": QUESTIONS - line["doc_id"]}) + "\n" for line in lines))
    base = next(run for run in read([runs / "tandem"]) if run.policy == "intern")
    joined = join(run_of(moved), base)
    assert joined.places.tolist() == list(range(QUESTIONS))
    assert joined.run.questions == base.questions
    assert joined.run.documents == base.documents
    assert joined.run.grades.tolist() == run_of(runs / "hf").grades.tolist()
    assert joined.run.prompts == run_of(runs / "hf").prompts


def test_other_documents_under_the_same_numbers_are_not_the_same_questions(runs: Path, tmp_path: Path) -> None:
    other = changed(runs / "hf", tmp_path / "other")
    (samples,) = other.rglob("samples_*")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    for line in lines[:4]:
        line["doc"]["question"] += " Now?"
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = comparison_of(runs / "tandem", other)
    (joined,) = comparison.partial
    assert joined.exchanged == 4
    assert joined.places.tolist() == list(range(4, QUESTIONS))
    rows = [row for _, row in differences(comparison)]
    assert ("documents", "others under 4 of the same numbers", "") in rows


def test_checksums_of_documents_and_prompts_are_the_harness_s(runs: Path) -> None:
    for folder in ("hf", "tandem", "chat"):
        for file in (runs / folder).rglob("samples_*"):
            for line in map(json.loads, file.read_text().splitlines()):
                assert harness_files.document_checksum(line) == line["doc_hash"]
                assert harness_files.prompt_checksum(line) == line["prompt_hash"]
                assert line["doc"]["question"] in (harness_files.first_prompt(line) or "")


def test_two_runs_of_one_model_are_two_rows_that_say_what_differs(runs: Path) -> None:
    comparison = comparison_of(runs / "tandem", runs / "hf", runs / "hf-short")
    assert [comparison.label(run) for run in comparison.others] == [
        "hf intern, max_gen_toks 60",
        "hf intern, max_gen_toks 200",
    ]


def test_of_a_repeated_run_of_another_model_the_newest_counts(runs: Path, tmp_path: Path) -> None:
    again = changed(runs / "hf", tmp_path / "again", lambda results: results["config"].update(batch_size="1"))
    for file in list(again.rglob("*_20*")):
        file.rename(file.with_name(re.sub(r"_20\d\d", "_2999", file.name)))
    comparison = comparison_of(runs / "tandem", runs / "hf", again)
    assert [run.flags for run in comparison.others] == [("--batch_size 1", f"--limit {QUESTIONS}")]


# --- the warning


def test_what_differs_is_named_for_each_run(runs: Path) -> None:
    made = report([runs / "tandem", runs / "hf", runs / "hf-short", runs / "chat"])
    assert names(made)[0] == "same-questions"
    warning = table_of(made, "same-questions")
    assert warning.columns == ("run", "what differs", "in this run", "in cascade")
    rows = {tuple(map(str, cells)) for cells in warning.rows}
    assert rows == {
        ("hf intern, max_gen_toks 60", "max_gen_toks", "60", "200"),
        ("local-chat-completions tiny", "chat template", "the server's own", "not applied"),
    }


def test_few_shot_examples_are_named_and_the_prompts_that_they_change(tmp_path: Path) -> None:
    save_task(tmp_path, [f"{count} coins, and one more?" for count in range(6)])
    base = ("--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out"), "--log_samples")
    arguments = (command("coins", policy="intern"), command("coins", "hf", pretrained=pair.INTERN))
    for given, more in zip(arguments, ((), ("--num_fewshot", "2")), strict=True):
        lm_eval(*options_of(given), *base, *more)
    lm_eval(*options_of(arguments[1]), *base)
    comparison = comparison_of(tmp_path / "out")
    assert [comparison.label(run) for run in comparison.others] == ["hf intern, 0-shot", "hf intern, 2-shot"]
    assert [(comparison.label(run), row) for run, row in differences(comparison)] == [
        ("hf intern, 2-shot", ("few-shot examples", "2", "0")),
        ("hf intern, 2-shot", ("prompts", "another text in 6 of 6", "")),
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda results: results["versions"].update({TASK: 2.0}), ("task version", "2.0", "1.0")),
        (
            lambda results: results.update(system_instruction="Be exact.", system_instruction_sha="0"),
            ("system instruction", "Be exact.", "none"),
        ),
        (
            lambda results: results["configs"][TASK]["generation_kwargs"].update(until=["\n\n"]),
            ("until", '"\\n\\n"', "none"),
        ),
        (
            lambda results: results["configs"][TASK]["generation_kwargs"].update(do_sample=True, temperature=0.7),
            ("sampling", "temperature 0.7", "greedy"),
        ),
        (
            lambda results: results.update(chat_template="{{ x }}", chat_template_sha="abcdef0123456789"),
            ("chat template", "applied (abcdef01)", "not applied"),
        ),
        (
            lambda results: results["configs"][TASK].update(description="Think."),
            ("description before the examples", "Think.", "none"),
        ),
    ],
)
def test_each_setting_that_differs_is_a_row(
    runs: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], expected: tuple[str, str, str]
) -> None:
    comparison = comparison_of(runs / "tandem", changed(runs / "hf", tmp_path / "hf", change))
    assert [row for _, row in differences(comparison)] == [expected]


def test_a_setting_that_differs_in_one_task_of_a_group_names_the_task(tmp_path: Path) -> None:
    tasks = ("m_a", "m_b")
    for task in tasks:
        for folder, policy in (("tandem", "cascade"), ("other", "mentor")):
            file = World.random(6, task=task).write(tmp_path / folder, policy, with_ledger=False)
            results = {**json.loads(file.read_text()), "group_subtasks": {"m": list(tasks)}, "n-shot": {task: 0}}
            if folder == "other":
                del results["config"]["tandem"]
                results["config"]["model"] = "vllm"
                results |= {"model_name": "lab/middle", "n-shot": {task: 5 * (task == "m_b")}}
            file.write_text(json.dumps(results))
    comparison = comparison_of(tmp_path)
    (other,) = comparison.others
    assert comparison.label(other) == "vllm middle"
    assert other.subjects == comparison.reference.subjects == ("a",) * 6 + ("b",) * 6
    assert [row for _, row in differences(comparison)] == [("few-shot examples (in m_b)", "5", "0")]


@pytest.mark.parametrize("pattern", ["pair/**", "real/*/tandem_*/*", "real/*/strategies/*"])
def test_policies_of_tandem_among_themselves_raise_no_alarm(pattern: str) -> None:
    if not RESULTS.is_dir():
        pytest.skip("the tests were copied without results/")
    found = sorted({file.parents[1] for file in RESULTS.glob(f"{pattern}/*/results_*.json")})
    comparisons = group(read(found))
    assert comparisons
    assert [row for comparison in comparisons for row in differences(comparison)] == []


def test_a_policy_that_was_asked_differently_is_named_too(runs: Path, tmp_path: Path) -> None:
    lm_eval(
        *options_of(command(TASK, policy="mentor", mentor="pair", intern="pair")),
        *(
            "--limit",
            str(QUESTIONS),
            "--output_path",
            str(tmp_path),
            "--log_samples",
            "--gen_kwargs",
            "max_gen_toks=80",
        ),
    )
    comparison = comparison_of(runs / "tandem", tmp_path)
    assert [(run.policy, row) for run, row in differences(comparison)] == [("mentor", ("max_gen_toks", "80", "200"))]


def test_ways_to_say_the_same_are_no_difference() -> None:
    plain = {"generation_kwargs": {"until": ["Q:"], "max_gen_toks": 64, "do_sample": False}}
    same = {"generation_kwargs": {"until": "Q:", "max_new_tokens": 64, "temperature": 0.0, "top_p": 0.9}}
    assert generation(plain, {}) == generation(same, {})
    assert generation(
        {"generation_kwargs": {"until": ["Q:"], "do_sample": False}}, {"max_gen_toks": "64"}
    ) == generation(plain, {})
    assert chat_template({"chat_template": None, "chat_template_sha": None}) == NO_TEMPLATE
    assert chat_template({"chat_template": "", "chat_template_sha": None}) == SERVERS_TEMPLATE


# --- costs that cannot be known, and mistakes


def test_reasoning_that_the_harness_cut_off_cannot_be_counted(runs: Path, tmp_path: Path) -> None:
    def think(results: dict[str, Any]) -> None:
        results["config"]["model_args"] = {"pretrained": "lab/intern", "think_end_token": "</think>"}

    made = report([runs / "tandem", changed(runs / "hf", tmp_path / "hf", think)], given=KNOWN_OF_HF)
    assert row(table_of(made, "policies"), "hf intern")["cost (MFLOPs)"] == NOT_KNOWN
    (gap,) = [part for part in missing(made, "trade-off") if "hf intern" in part.reason]
    assert gap.reason.endswith("the tokens are not known: the harness cut its reasoning off (think_end_token).")
    assert gap.command == ""


def test_compared_answers_have_no_tokens(runs: Path, tmp_path: Path) -> None:
    def compare(results: dict[str, Any]) -> None:
        results["configs"][TASK]["output_type"] = "multiple_choice"

    run = run_of(changed(runs / "hf", tmp_path / "hf", compare), KNOWN_OF_HF)
    assert not run.measures
    assert run.model is not None
    assert run.model.uncounted == "the task compares given answers, and nothing is generated"


def test_an_answer_cut_at_its_limit_has_no_end(runs: Path) -> None:
    from lm_eval_tandem.reports.sources.answer_tokens import with_end

    assert [with_end(n, 60) for n in (0, 59, 60, 61)] == [1, 60, 60, 61]
    assert with_end(60, None) == 61
    run = run_of(runs / "hf-short", KNOWN_OF_HF)
    assert run.measures["length"].max() == 60


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--parameters", "intern=many"], "--parameters intern=many has to be a number of parameters, such as 7e9."),
        (["--parameters", "7e9"], "--parameters 7e9: write --parameters NAME=NUMBER, with the name of a model."),
        (["--parameters", "gpt=7e9"], "--parameters gpt: none of the runs is of another model with this name"),
        (["--price", "intern=1"], "--price intern=1 has to be INPUT:CACHED:OUTPUT, three numbers of dollars"),
        (["--price", "intern=1:x:2"], "--price intern=x has to be a number of dollars per million tokens, 0 or more."),
        (["--tokenizer", "intern=nowhere"], "--tokenizer intern=nowhere: there is no tokenizer.json"),
        (["--price", "intern=1:2", "--price", "intern=1:2"], "intern was given before; give it once."),
    ],
)
def test_a_wrong_option_ends_in_one_sentence(
    runs: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(runs / "tandem"), str(runs / "hf"), *options])
    message = capsys.readouterr().err.strip()
    assert ended.value.code == 1
    assert sentence in message
    assert "\n" not in message


def test_a_file_that_is_no_tokenizer_is_named(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArgumentError, match=r"tokenizer\.json cannot be read"):
        read([runs / "hf"], given=GivenCosts.read([], [f"intern={tmp_path}"]))


def test_the_command_line_takes_what_the_harness_does_not_record(runs: Path, tmp_path: Path) -> None:
    given = ["--parameters", "tiny=188416", "--price", "tiny=2:0.5:8"]
    given += ["--tokenizer", f"tiny={pair.INTERN}", "--tokenizer", f"intern={pair.INTERN}"]
    folders = [str(runs / name) for name in ("tandem", "hf", "api")]
    cli.main(["report", *folders, *given, "--only", "policies,same-questions", "--output", str(tmp_path / "r.md")])
    text = (tmp_path / "r.md").read_text()
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in text.splitlines() if "|" in line}
    assert lines["hf intern"][1] == lines["local-completions tiny"][1] == lines["intern"][1]
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Accuracy, length and cost by policy",
        "## Models and software of the runs",
    ], "the warning is left out where there is nothing to warn of"


def test_numbers_in_a_table_of_other_models_are_numbers(runs: Path) -> None:
    made = report([runs / "tandem", runs / "hf"], given=KNOWN_OF_HF)
    assert isinstance(row(table_of(made, "policies"), "hf intern")["cost (MFLOPs)"], Number)
