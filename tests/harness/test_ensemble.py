"""The model `ensemble`: its arguments, refused in one sentence each, and real runs of every strategy."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from bundled import COMMON, instances
from command_line import BARE_WITHOUT_DEFAULT_TASKS, ENVIRONMENT, PATIENCE, entries, results, run_forked, samples
from lm_eval_tandem import _paths, cli, pair
from lm_eval_tandem.engines import Role, registry
from lm_eval_tandem.ensembles.reference_file import Reference, write_reference
from lm_eval_tandem.ensembles.strategies import AGGREGATIONS, SELECTIONS
from lm_eval_tandem.errors import ArgumentError, ContextError
from lm_eval_tandem.harness.ensemble_arguments import ARGUMENTS
from lm_eval_tandem.harness.ensemble_model import EnsembleLM
from lm_eval_tandem.harness.ensemble_settings import EnsembleSettings, models_alone, read_ensemble
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.reports.report import report
from lm_eval_tandem.training.reference_questions import collect_from_tasks


def read(**given: Any) -> EnsembleSettings:
    return read_ensemble(given, registry.arguments)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "aggregation=… has to say how what they write becomes one answer; use one of vote, best_of, loop"),
        ({"aggregation": "mean"}, "aggregation=mean is not known; use one of one, vote"),
        ({"aggregation": "loop", "agregation": "x"}, "did you mean aggregation?"),
        ({"aggregation": "loop", "api_key": "secret"}, "api_key would be printed and kept"),
        (
            {"aggregation": "loop", "models": [{"model": "pair/mentor", "extra_body": {"api_key": "secret"}}]},
            "extra_body holds api_key, which would be printed and kept",
        ),
        ({"aggregation": "loop", "batch_size": "0"}, "batch_size=0 has to be a whole number from 1"),
        ({"aggregation": "loop", "models": "a;;b"}, "models=a;;b has to name models with semicolons"),
        ({"aggregation": "loop", "models": "./none;b"}, "models=./none is no folder"),
        ({"aggregation": "loop", "models": [{"name": "x"}]}, "models holds an entry with name, and without `model`"),
        (
            {"aggregation": "loop", "models": [{"model": "pair/mentor", "dtpye": "x"}]},
            "the argument 'dtpye' of mentor is not known to ensemble; did you mean dtype?",
        ),
        ({"aggregation": "loop", "weights": "1:1"}, "weights has no effect with selection=all and aggregation=loop"),
        ({"aggregation": "distribution"}, "aggregation=distribution needs weights; give weights=…"),
        ({"aggregation": "distribution", "weights": "1:1:1"}, "weights=1.0:1.0:1.0 holds 3 numbers for 2 models"),
        ({"aggregation": "distribution", "weights": "0:0"}, "has to be numbers of 0 or more, one of them above 0"),
        ({"aggregation": "gac", "threshold": "2"}, "threshold=2 has to be a number from 0 to 1"),
        ({"aggregation": "gac", "selection": "random"}, "does not go with selection=random"),
        ({"aggregation": "best_of"}, "aggregation=best_of needs scorer; give scorer=…"),
        ({"aggregation": "best_of", "scorer": "logprob:me"}, "use one of logprob:mentor, logprob:intern"),
        ({"aggregation": "loop", "scorer_step_separator": "x"}, "scorer_step_separator has no effect without scorer"),
        ({"aggregation": "loop", "segment_tokens": "0"}, "segment_tokens=0 has to be 1 or more"),
        ({"aggregation": "loop", "segment_tokens": -3.0}, "segment_tokens=-3 has to be 1 or more"),
        ({"aggregation": "loop", "store": "x", "ledger": "x"}, "store and ledger both name x; give each a file"),
        ({"aggregation": "one"}, "aggregation=one takes the answer of one model, but selection=all selects all 2"),
        (
            {
                "aggregation": "vote",
                "models": [{"model": f"pair/{role}", "name": "x"} for role in ("mentor", "intern")],
            },
            "models gives the name x to two models; give each a name of its own.",
        ),
        ({"aggregation": "vote", "extract": "("}, "extract=( is no regular expression"),
        (
            {"selection": "zscore", "aggregation": "vote"},
            "selection=zscore needs reference; collect it with `lm-eval-tandem collect --reference` and give its file "
            "as reference=FILE (in a file of the authors' toolkit as model_stats: {stats_file: FILE}).",
        ),
        (
            {"selection": "zscore"},
            "use one of vote, best_of, loop, random, reward_based. It also needs reference: collect it with",
        ),
        ({"aggregation": "vote", "models": "pair/mentor:pair/intern"}, "put semicolons between models, as in a;b;c."),
        ({"aggregation": "vote", "models": "pair;org/x"}, "models=pair is no bundled model; use pair/mentor or pair/"),
        (
            {"aggregation": "vote", "models": [{"model": "pair/mentor", "nam": "x"}]},
            "'nam' of mentor is not known to ensemble; did you mean name? A model's mapping takes model, name,",
        ),
        (
            {"aggregation": "vote", "models": [{"model": "pair/mentor", "count": 1}]},
            "count is an argument of the whole ensemble; write it beside models, not in the mapping of mentor.",
        ),
        ({"selection": "random", "count": "3"}, "count=3 is more than the 2 models"),
        ({"selection": "random", "count": "2"}, "may leave several models"),
        ({"selection": "all", "count": "1", "aggregation": "loop"}, "count has no effect with selection=all"),
        ({"aggregation": "vote", "loglikelihood": "x"}, "loglikelihood=x names no model; use one of mentor, intern"),
        ({"aggregation": "vote", "models": "pair/nope;pair/mentor"}, "models=pair/nope is no bundled model"),
        ({"aggregation": "vote", "models": [{"model": " "}]}, "and without `model`"),
        ({"aggregation": "vote", "models": [{"name": "a", "api_key": "secret"}]}, "with name, api_key, and without"),
        ({"aggregation": "vote", "models": [{"model": "a", "api_key": "secret"}, None]}, "has to name models"),
        ({"aggregation": "vote", "models": [{"model": "pair/mentor", 5: "x"}]}, "whose names are no texts"),
        ({"aggregation": "vote", "policy": "cascade"}, "policy is an argument of --model tandem"),
        ({"aggregation": "one", "selection": "random", "count": "2"}, "aggregation=one takes the answer of one model"),
        ({"aggregation": "distribution", "weights": "1e308:1e308"}, "has to be numbers of 0 or more"),
        ({"aggregation": "loop", "segment_end": ["a", "b"]}, "segment_end has to be one text"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(sentence)) as refused:
        read(**given)
    assert "secret" not in str(refused.value)


def test_strategies_that_need_whole_distributions_name_the_models_that_give_none(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(ArgumentError, match=r"only backend=hf gives, and not x.gguf \(llamacpp\)"):
        read(models=f"pair/mentor;{tmp_path / 'x.gguf'}", aggregation="average")


def test_models_that_report_no_confidence_are_refused_before_any_is_loaded(tmp_path: Path) -> None:
    """Both where a reference is used and where it is collected."""
    (tmp_path / "x.gguf").write_bytes(b"no model")
    models = f"pair/mentor;{tmp_path / 'x.gguf'}"
    reference = tmp_path / "reference.json"
    write_reference(reference, {name: Reference(2, 1, 1, 1, 5) for name in ("pair/mentor", "x.gguf")}, {})
    lacking = "needs the probability of the most likely token .* which backend=llamacpp does not report; use models"
    with pytest.raises(ArgumentError, match=f"^selection=zscore of x.gguf {lacking}"):
        read(models=models, aggregation="vote", selection="zscore", reference=str(reference))
    with pytest.raises(ArgumentError, match=f"^collect --reference of x.gguf {lacking}"):
        collect_from_tasks({"models": models}, ["tandem_pair_math_train"], tmp_path / "out", ())


def test_models_of_one_name_are_told_apart_and_have_their_own_arguments() -> None:
    models = [{"model": "pair/mentor", "dtype": "float64", "price_input": 1, "price_output": 2}, "pair/mentor"]
    chosen = read(models=models, aggregation="loop", dtype="float32", max_rounds=7)
    assert chosen.members == ("mentor", "mentor-2")
    assert [role.arguments for role in chosen.roles.values()] == [{"dtype": "float64"}, {"dtype": "float32"}]
    assert [role.prices is None for role in chosen.roles.values()] == [False, True]
    assert [role.label for role in chosen.roles.values()] == ["pair/mentor"] * 2
    assert chosen.policy == "ensemble:loop (max_rounds=7)"
    assert chosen.run_name == "ensemble-mentor+mentor-2-loop"


def test_a_file_holds_arguments_and_those_of_the_command_go_before_it(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("models: [pair/mentor, {model: pair/intern, name: small}]\naggregation: loop\nsegment_tokens: 9\n")
    chosen = read(ensemble=str(file), segment_tokens="5")
    assert (chosen.members, chosen.options) == (("mentor", "small"), {"segment_tokens": 5})
    file.write_text("models: [{model: a, api_key: secret\n")
    with pytest.raises(ArgumentError, match=r"cannot be read \(line 2: ") as refused:
        read(ensemble=str(file))
    assert "secret" not in str(refused.value)
    file.write_text("5: loop\n")
    with pytest.raises(ArgumentError, match="has an entry whose name is no text"):
        read(ensemble=str(file))
    file.write_text("")
    with pytest.raises(ArgumentError, match="holds no arguments"):
        read(ensemble=str(file))


def test_a_policy_says_in_one_line_what_differs_and_no_name_is_too_long_for_a_folder() -> None:
    chosen = read(aggregation="loop", segment_end=r"\n")
    assert chosen.options["segment_end"] == "\n"
    assert chosen.policy == r"ensemble:loop (segment_end=\n)"
    chosen = read(aggregation="best_of", scorer="lab/reward", scorer_step_separator="#")
    assert chosen.policy == "ensemble:best_of (scorer=reward, scorer_step_separator=#)"
    many = [{"model": "pair/mentor", "name": f"a-model-of-a-long-name-{i}"} for i in range(12)]
    assert len(read(models=many, aggregation="vote").run_name) < 150
    assert read(models=[{"model": "pair/mentor", "name": "scorer"}]).members == ("scorer-2",)
    assert read(models="pair/mentor;pair/intern", aggregation="vote").pair_name == "pair"
    assert read(models="pair", aggregation="vote").roles == read(aggregation="vote").roles


def test_the_same_run_replaces_its_ledger_and_no_other(tmp_path: Path) -> None:
    given = {**COMMON, "selection": "random", "ledger": str(tmp_path / "l.jsonl")}
    for _ in range(2):
        lm = EnsembleLM(**given)
        lm.generate_until(instances(1, max_gen_toks=4), disable_tqdm=True)
        lm.close()
    with pytest.raises(ArgumentError, match=r"policy=ensemble:random/one of pair/mentor and pair/intern, which"):
        EnsembleLM(**{**given, "selection": "self_assessment"})
    with pytest.raises(ArgumentError, match="holds the ledger of another run"):
        TandemLM(**COMMON, policy="stage:1", ledger=given["ledger"])


def test_every_argument_is_described_and_its_default_passes_its_own_check() -> None:
    parameters, text = inspect.signature(EnsembleLM).parameters, inspect.getdoc(EnsembleLM) or ""
    assert list(parameters) == [*(one.name for one in ARGUMENTS), "engine_arguments"]
    for one in ARGUMENTS:
        assert one.meaning.endswith("."), one.name
        assert f"\n{one.name}\n" in text
        if one.default is not None:
            assert one.check(one.name, one.default) == one.default


@pytest.mark.parametrize(
    ("table", "names"),
    [("ensemble", [one.name for one in ARGUMENTS]), ("selections", SELECTIONS), ("aggregations", AGGREGATIONS)],
)
def test_the_command_prints_every_argument_and_strategy(
    table: str, names: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["arguments", table])
    assert all(f"\n{name}\n" in f"\n{capsys_text}" for capsys_text in [capsys.readouterr().out] for name in names)


STRATEGIES: list[dict[str, Any]] = [
    {"selection": "random"},
    {"selection": "self_assessment"},
    {"selection": "zscore", "count": 1},
    {"aggregation": "vote"},
    {"aggregation": "best_of", "scorer": "logprob:mentor"},
    {"aggregation": "loop", "segment_tokens": 7},
    {"aggregation": "random", "segment_tokens": 7},
    {"aggregation": "reward_based", "segment_tokens": 7, "scorer": "logprob:intern"},
    {"aggregation": "gac"},
    {"aggregation": "gac", "threshold": 0.5},
]
ONE_VOCABULARY: list[dict[str, Any]] = [{"aggregation": "average"}, {"aggregation": "distribution", "weights": "3:1"}]
QUESTIONS = 4


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> str:
    base = tmp_path_factory.mktemp("families")
    window = {"max_position_embeddings": 1024}
    first = tiny.save(base / "mentor", "qwen3", 1, **window)
    return f"{first};{tiny.save(base / 'intern', 'llama', 1, tiny.other_tokenizer(), **window)}"


@pytest.fixture(scope="module")
def references(families: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `lm-eval-tandem collect --reference` writes for the pair, and for the models of two families."""
    base, files = tmp_path_factory.mktemp("reference"), {}
    for models in ("pair/mentor;pair/intern", families):
        output = base / str(len(files))
        arguments = ",".join([f"models={models}", *(f"{name}={value}" for name, value in COMMON.items())])
        command = ["collect", "--reference", "--tasks", "tandem_pair_math_train", "--limit", "5"]
        cli.main([*command, "--model_args", arguments, "--output", str(output)])
        files[models] = str(output / "reference.json")
    return files


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each model is loaded once for each batch size; closing an ensemble leaves it."""
    engines: dict[tuple[str, str], Any] = {}
    load = registry.load

    def once(role: Role) -> Any:
        key = role.model, str(role.arguments["batch_size"])
        if key not in engines:
            engines[key] = load(role)
            closers.append(engines[key].close)
            engines[key].close = lambda: None
        return engines[key]

    closers: list[Any] = []
    monkeypatch.setattr(registry, "load", once)
    yield
    for close in closers:
        close()


def test_a_run_warns_once_of_answers_that_no_segment_was_good_enough_for(caplog: pytest.LogCaptureFixture) -> None:
    given = {**COMMON, "models": "pair", "aggregation": "reward_based", "scorer": "logprob:mentor"}
    for threshold, sentences in (
        (0.5, ["3 of 3 answers are empty, because no first segment reached score_threshold=0.5; lower it."]),
        (-100, []),
    ):
        caplog.clear()
        lm = EnsembleLM(**given, score_threshold=threshold)
        answers = lm.generate_until(instances(3, max_gen_toks=6), disable_tqdm=True)
        lm.close()
        assert [record.message for record in caplog.records if "score_threshold" in record.message] == sentences
        assert [answer == "" for answer in answers] == [bool(sentences)] * 3


def test_models_that_say_neither_yes_nor_no_are_warned_of_when_measured_and_when_selected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The bundled models have learned no such reply."""
    lm = EnsembleLM(**COMMON, selection="self_assessment")
    lm.generate_until(instances(3, max_gen_toks=4), disable_tqdm=True)
    lm.close()
    (sentence,) = [record.message for record in caplog.records if "self_assessment" in record.message]
    assert "for 3 of 3 questions no model gives Yes and No together a probability of 0.01" in sentence
    caplog.clear()
    collect_from_tasks({**COMMON, "models": "pair/mentor"}, ["tandem_pair_math_train"], tmp_path, (), limit=4)
    (sentence,) = [record.message for record in caplog.records if "Yes and No" in record.message]
    assert sentence.startswith("pair/mentor gives Yes and No together a probability of ")


@pytest.mark.usefixtures("loaded_once")
def test_a_reference_is_replaced_only_by_one_of_the_same_models_and_questions(tmp_path: Path) -> None:
    def collect(models: str, task: str = "tandem_pair_math_train", limit: int = 4) -> Path:
        return collect_from_tasks({**COMMON, "models": models}, [task], tmp_path, (), limit=limit)

    file = collect("pair/mentor")
    kept = file.read_bytes()
    lost = r"reference.json holds a reference of other {} \(.*, and not .*\), which would be lost; give another folder"
    with pytest.raises(ArgumentError, match=lost.format("models")):
        collect("pair")
    with pytest.raises(ArgumentError, match=lost.format("tasks")):
        collect("pair/mentor", "tandem_pair_code_train")
    with pytest.raises(ArgumentError, match=lost.format("questions")):
        collect("pair/mentor", limit=5)
    assert file.read_bytes() == kept
    assert collect("pair/mentor").read_bytes() == kept
    file.write_text("no reference")
    with pytest.raises(ArgumentError, match=r"reference.json holds no reference, and would be lost"):
        collect("pair/mentor")


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize("kind", ["pair", "two families"])
def test_neither_the_batch_size_nor_a_run_that_was_broken_off_changes_a_string(
    kind: str, families: str, references: dict[str, str], tmp_path: Path
) -> None:
    """Every strategy, on the bundled pair and on two tokenizers."""
    models = families if kind == "two families" else "pair/mentor;pair/intern"
    texts = set()

    def answers(questions: int, given: dict[str, Any]) -> tuple[list[str], list[Any]]:
        lm = EnsembleLM(**given)
        found = lm.generate_until(instances(questions, max_gen_toks=20), disable_tqdm=True)
        records = sorted(lm.records, key=lambda record: record.doc_id)
        segments = [[(part.writer, part.tokens) for part in record.segments] for record in records]
        counted = [(record.spent, record.selected, *parts) for record, parts in zip(records, segments, strict=True)]
        lm.close()
        return found, counted

    for strategy in STRATEGIES + (ONE_VOCABULARY if kind == "pair" else []):
        given = {**COMMON, "models": models, **strategy}
        if strategy.get("selection") == "zscore":
            given["reference"] = references[models]
        one_by_one = answers(QUESTIONS, {**given, "batch_size": 1})
        stored = {**given, "store": str(tmp_path / "store.sqlite")}
        answers(QUESTIONS // 2, stored)
        assert answers(QUESTIONS, stored) == one_by_one, strategy
        texts.add(tuple(one_by_one[0]))
    assert len(texts) >= 5, "the strategies did the same"


def command(*arguments: str, task: str = "tandem_pair_math", limit: int = 60) -> list[str]:
    program = [sys.executable, "-c", BARE_WITHOUT_DEFAULT_TASKS, "--model", "ensemble", "--tasks", task]
    program += ["--include_path", str(_paths.task_configs()), "--limit", str(limit), "--batch_size", "8"]
    return [*program, "--model_args", ",".join(arguments)]


def test_a_killed_run_goes_on_and_stands_in_the_report_beside_the_pair_s_policies(tmp_path: Path) -> None:
    """The bare `lm_eval`, killed with some answers in the store, then continued; table and report have costs."""
    store, ledger = tmp_path / "store.sqlite", tmp_path / "runs" / "loop.jsonl"
    asked = command("aggregation=loop", "segment_tokens=12", f"store={store}", f"ledger={ledger}")
    asked += ["--output_path", str(tmp_path / "runs"), "--log_samples"]
    started = subprocess.Popen(
        asked, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    waited = time.monotonic()
    while entries(store) < 20 and started.poll() is None and time.monotonic() - waited < PATIENCE:
        time.sleep(0.05)
    assert started.poll() is None, "it had ended before it could be killed"
    started.kill()
    started.wait()
    kept = entries(store)
    printed = run_forked(asked, tmp_path)
    assert re.search(r"\|\s*\|none\s*\|\s*0\|tflops", printed)
    described = results(tmp_path / "runs")["config"]["tandem"]
    assert described["policy"] == "ensemble:loop (segment_tokens=12)"
    assert described["totals"]["found_in_store"] >= kept
    assert described["totals"]["questions"] == len(samples(tmp_path / "runs")) == 60
    records = [json.loads(line) for line in ledger.read_text().splitlines()[1:]]
    assert {segment["writer"] for record in records for segment in record["segments"]} == {"mentor", "intern"}
    cascade = [sys.executable, "-c", BARE_WITHOUT_DEFAULT_TASKS, *asked[3:]]
    cascade[cascade.index("ensemble")] = "tandem"
    cascade[cascade.index("--model_args") + 1] = f"policy=cascade,ledger={tmp_path / 'runs' / 'cascade.jsonl'}"
    run_forked(cascade, tmp_path)
    made = report([tmp_path / "runs"])
    tables = {table.name: table for table in made.tables}
    policies = next(table for name, table in tables.items() if name.startswith("policies-"))
    assert [row[0] for row in policies.rows] == ["ensemble:loop (segment_tokens=12)", "cascade"]
    assert {"whole bill (MFLOPs)", "call seconds (summed)", "points above the cascade"} <= set(policies.columns)
    compared = next(table for name, table in tables.items() if name.startswith("compared-"))
    assert [row[0] for row in compared.rows] == ["ensemble:loop (segment_tokens=12)"]


POLICIES: list[dict[str, Any]] = [
    *({"policy": policy} for policy in ("handoff:12", "outline:12")),
    *({"policy": policy, "step_end": "."} for policy in ("steps:0.05", "verify:4")),
]
RUNS = [("ensemble", one) for one in STRATEGIES + ONE_VOCABULARY] + [("tandem", one) for one in POLICIES]


def named(run_of: Any) -> str:
    """A run as pytest calls it."""
    return "-".join(map(str, run_of[1].values())) if isinstance(run_of, tuple) else str(run_of)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pair", "two families"])
@pytest.mark.parametrize("chosen", RUNS, ids=named)
def test_every_strategy_through_bare_lm_eval_killed_and_continued_at_two_batch_sizes(
    chosen: tuple[str, dict[str, Any]], kind: str, families: str, references: dict[str, str], tmp_path: Path
) -> None:
    model, strategy = chosen
    if kind == "two families" and strategy in ONE_VOCABULARY:
        pytest.skip("two vocabularies have no plain average")
    models = families if kind == "two families" else "pair/mentor;pair/intern"
    given = dict(strategy)
    if model == "ensemble":
        given["models"] = models
    elif kind == "two families":
        given |= dict(zip(("mentor", "intern"), models.split(";"), strict=True))
    if strategy.get("selection") == "zscore":
        given["reference"] = references[models]
    store = tmp_path / "store.sqlite"

    def asked(batch_size: int, folder: str, **more: Any) -> list[str]:
        words = command(*(f"{name}={value}" for name, value in {**given, **more}.items()), limit=24)
        words[words.index("--batch_size") + 1] = str(batch_size)
        words[words.index("--model") + 1] = model
        return [*words, "--gen_kwargs", "max_gen_toks=20", "--output_path", str(tmp_path / folder), "--log_samples"]

    interrupted = asked(4, "a", store=store)
    started = subprocess.Popen(
        interrupted, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    waited = time.monotonic()
    while entries(store) < 6 and started.poll() is None and time.monotonic() - waited < PATIENCE:
        time.sleep(0.02)
    started.kill()
    started.wait()
    run_forked(interrupted, tmp_path)
    run_forked(asked(1, "b"), tmp_path)
    answers = [[sample["resps"] for sample in samples(tmp_path / folder)] for folder in ("a", "b")]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 24


@pytest.mark.parametrize("as_chats", [False, True])
def test_a_reference_of_questions_that_were_rendered_otherwise_is_warned_of(
    as_chats: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"limit": 4, "apply_chat_template": as_chats}
    file = collect_from_tasks({**COMMON, "models": "pair"}, ["tandem_pair_math_train"], tmp_path, (), **asked)
    given = {**COMMON, "models": "pair", "selection": "zscore", "count": 1, "reference": str(file)}

    def warnings_of(chats: bool) -> list[str]:
        lm = EnsembleLM(**given)
        requests = instances(2, max_gen_toks=4)
        for request in requests:
            question, generation = request.args
            history = [{"role": "user", "content": question}]
            request.arguments = (lm.apply_chat_template(history) if chats else question, generation)
        caplog.clear()
        lm.generate_until(requests, disable_tqdm=True)
        lm.close()
        return [record.message for record in caplog.records if "reference=" in record.message]

    assert warnings_of(as_chats) == []
    (sentence,) = warnings_of(not as_chats)
    was, now = ("as plain text", "in the models' chat templates") if not as_chats else ("in its chat template", "plain")
    assert f"how mentor reads questions was measured {was}" in sentence
    assert now in sentence
    content = json.loads(file.read_text())
    for values in content["models"].values():
        del values["chat_template"]
    file.write_text(json.dumps(content))
    (sentence,) = warnings_of(as_chats)
    assert "it does not say whether mentor and intern read the questions in a chat template" in sentence


def test_a_reference_is_collected_with_the_file_of_the_run_that_needs_it(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("models: pair/mentor;pair/intern\nselection: zscore\nreference: none.json\naggregation: loop\n")
    left = models_alone({"ensemble": str(file), "segment_tokens": 5, "scorer_step_separator": "x", "dtype": "float32"})
    assert left == {"models": "pair/mentor;pair/intern", "dtype": "float32"}


def test_a_question_that_leaves_no_room_for_the_self_assessment_is_refused_before_the_run(tmp_path: Path) -> None:
    small = tiny.save(tmp_path / "small", max_position_embeddings=96)
    lm = EnsembleLM(**COMMON, models=str(small), selection="self_assessment")
    with pytest.raises(ContextError, match="and the question whether small can solve it do not fit into its window"):
        lm.generate_until(instances(1, max_gen_toks=4), disable_tqdm=True)
    lm.close()


def test_likelihoods_are_one_model_s(tmp_path: Path) -> None:
    lm = EnsembleLM(**COMMON, aggregation="vote", loglikelihood="intern")
    assert lm.answering.name == str(pair.INTERN)
    assert lm.tokenizer.name_or_path == str(pair.INTERN)
    lm.close()
