"""`lm-eval-tandem reproduce`: runs of the bundled pair, printed, run again, and with something changed since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import command_line
from lm_eval_tandem import _paths, cli, pair
from lm_eval_tandem.engines.identity import content_of
from lm_eval_tandem.harness.run_report import checksum
from lm_eval_tandem.reports.sources import recorded_runs
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reproduce import data, facts, harness_command, rerun, versions
from lm_eval_tandem.reproduce.harness_command import argument_text
from tasks.in_process import lm_eval

RESULTS = Path(__file__).parent.parent / "results"
QUESTIONS = 12
NOTHING = "Nothing that was recorded differs here."


def run(folder: Path, task: str = "tandem_pair_math", options: Sequence[str] = (), **arguments: Any) -> Path:
    """Run a task with lm-eval's own command line; returns the folder of its results."""
    given = {"dtype": "float32", "device": "cpu", **arguments}
    text = ",".join(f"{name}={value}" for name, value in given.items())
    lm_eval(
        *("run", "--model", "tandem", "--model_args", text, "--tasks", task, "--batch_size", "16"),
        *("--limit", str(QUESTIONS), "--output_path", str(folder), "--log_samples"),
        *(options or ("--include_path", str(_paths.task_configs()))),
    )
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade with a ledger and a store."""
    folder = tmp_path_factory.mktemp("reproduce")
    return run(folder / "runs", ledger=folder / "runs" / "ledger.jsonl", store=folder / "store.sqlite")


def only(folder: Path) -> RecordedRun:
    (found,) = recorded_runs.read(folder.rglob("results_*.json"))
    return found


def differences(folder: Path) -> list[str]:
    return [fact.difference for fact in facts.of(only(folder)) if fact.difference]


def edit_results(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    (file,) = folder.rglob("results_*.json")
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_what_made_a_run_is_printed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["reproduce", str(finished)])
    printed = capsys.readouterr().out
    assert "python -m lm_eval_tandem run --model tandem --model_args dtype=float32,device=cpu," in printed
    assert (
        "--tasks tandem_pair_math --batch_size 16 --limit 12 --num_fewshot 0 --output_path FOLDER --log_samples"
        in printed
    )
    assert "ledger=FOLDER/ledger.jsonl" in printed
    assert "store" not in printed
    described = command_line.results(finished)["config"]["tandem"]
    assert f"classifier pair: {described['judge']['sha256'][:12]}…" in printed
    for role in ("mentor", "intern"):
        assert f"{role} pair/{role}: {described[role]['sha256'][:12]}…" in printed
    assert f"python {described['versions']['python']}" in printed
    assert "task tandem_pair_math 1.0" in printed
    assert NOTHING in printed


def test_a_run_comes_out_again(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what differs is told, once something in the old results is another."""
    cli.main(["reproduce", str(finished), "--run", "--output", str(tmp_path / "again")])
    printed = capsys.readouterr().out
    assert "tandem_pair_math: all 12 answers and all 8 scores are as they were." in printed
    now = only(tmp_path / "again")
    assert (now.file.parent.parent / "ledger.jsonl").is_file()
    assert now.totals.get("found_in_store") is None, "the store would give the old answers back"

    (file,) = finished.rglob("samples_*.jsonl")
    old = Path(shutil.copytree(finished, tmp_path / "old"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3]["resps"][0][0] += " coins"
    next(old.rglob("samples_*.jsonl")).write_text("".join(json.dumps(line) + "\n" for line in lines))

    def worse(content: dict[str, Any]) -> None:
        content["results"]["tandem_pair_math"]["acc,none"] = 0.5

    edit_results(old, worse)
    sentences, same = rerun.compare(only(old), now)
    assert not same
    assert sentences == [
        f"tandem_pair_math: 1 of 12 answers differ (documents {lines[3]['doc_id']}); acc,none was 0.5 and is "
        f"{now.results['results']['tandem_pair_math']['acc,none']:g}."
    ]
    sentences, same = rerun.compare(replace(only(old), results=now.results), now)
    assert not same


def test_a_difference_ends_the_command_with_1(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The thresholds have changed since: other stages answer, at other costs."""
    classifier = Path(shutil.copytree(_paths.classifiers() / "pair", tmp_path / "classifier"))
    folder = run(tmp_path / "runs", classifier=classifier)
    change_thresholds(classifier)
    with pytest.raises(SystemExit) as ended:
        cli.main(["reproduce", str(folder), "--run"])
    told = capsys.readouterr()
    assert ended.value.code == 1
    assert "here: The classifier classifier has the thresholds" in told.out
    assert "mentor_tokens,none was" in told.out
    assert "of 1 runs 1 came out differently" in told.err
    assert (tmp_path / "runs-reproduced").is_dir()
    with pytest.raises(SystemExit):
        cli.main(["reproduce", str(folder), "--run"])
    assert "holds something already; name a new folder with --output" in capsys.readouterr().err


def change_thresholds(classifier: Path) -> None:
    config = json.loads((classifier / "config.json").read_text())
    config["thresholds"] = [1.0 for _ in config["thresholds"]]
    config["policy_thresholds"] = {}
    (classifier / "config.json").write_text(json.dumps(config))


def change_weights(classifier: Path) -> None:
    file = classifier / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (change_thresholds, "The classifier classifier has the thresholds [1.0, 1.0, 1.0, 1.0] here and had"),
        (change_weights, "The classifier classifier has other weights here than in the run."),
        (lambda folder: (folder / "config.json").write_text("{"), "The classifier classifier cannot be read here"),
        (shutil.rmtree, "The classifier classifier (SHA-256 of its weights: "),
    ],
)
def test_a_changed_classifier_is_one_sentence(tmp_path: Path, change: Callable[[Path], None], sentence: str) -> None:
    classifier = Path(shutil.copytree(_paths.classifiers() / "pair", tmp_path / "classifier"))
    folder = run(tmp_path / "runs", classifier=classifier)
    assert differences(folder) == []
    change(classifier)
    (told,) = differences(folder)
    assert told.startswith(sentence)
    assert "Errno" not in told
    if not classifier.is_dir():
        assert f") is not here: there is no {classifier}. Put a copy of it there, or fit it again." in told
        assert "It was fitted on tandem_pair_math_train" in told
        assert told.endswith("lm-eval-tandem collect and fit make one.")


def test_a_classifier_of_the_committed_results_says_what_makes_it(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["reproduce", str(RESULTS / "pair" / "tandem-mentor+intern-32-cascade")])
    printed = capsys.readouterr().out
    assert "Errno" not in printed
    if not (RESULTS.parent / "build" / "results" / "classifiers").is_dir():
        assert "is not here: there is no build/results/classifiers/" in printed
        assert "make fits, or collect and fit, make one." in printed


def test_a_changed_model_is_one_sentence(tmp_path: Path) -> None:
    intern = Path(shutil.copytree(pair.INTERN, tmp_path / "intern"))
    folder = run(tmp_path / "runs", policy="intern", intern=intern, mentor="pair")
    assert differences(folder) == []
    with (intern / "generation_config.json").open("a") as file:
        file.write("\n")
    assert differences(folder) == [f"The files of the model {intern} are not those of the run."]
    shutil.rmtree(intern)
    assert differences(folder) == [f"The model {intern} is not here."]


def test_changed_data_are_one_sentence(tmp_path: Path) -> None:
    command_line.save_task(tmp_path, ["Ann starts with 5 coins.", "Ben starts with 6 coins.", "Dan has 7 coins."])
    tasks = ("--include_path", str(tmp_path / "tasks"))
    folder = run(tmp_path / "runs", "coins", tasks, policy="intern")
    assert differences(folder) == []
    assert f"--include_path {tmp_path / 'tasks'}" in " ".join(harness_command.printed(only(folder)))
    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows.replace("Ben", "Eva"))
    data.load_task.cache_clear()
    assert differences(folder) == ["1 of the 3 documents of coins differ here, the first is number 1."]
    (tmp_path / "tasks" / "coins.yaml").unlink()
    data.load_task.cache_clear()
    (told,) = differences(folder)
    assert told.startswith("The task coins cannot be loaded here (")


def test_a_changed_local_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify", reason="the extra lm-eval-tandem[math] is not installed")
    file = tmp_path / "tandem_gsm8k.jsonl"
    rows = [{"question": f"Ann starts with {i} coins.", "answer": f"#### {i}"} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("TANDEM_DATA", str(tmp_path))
    options = ("--include_path", str(_paths.task_configs()), "--gen_kwargs", "max_gen_toks=64")
    ledger = tmp_path / "runs" / "ledger.jsonl"
    folder = run(tmp_path / "runs", "tandem_gsm8k", options, policy="intern", ledger=ledger)
    described = only(folder).description
    assert described["data"]["tandem_gsm8k"]["file"] == "tandem_gsm8k.jsonl"
    assert str(tmp_path) not in json.dumps(described["data"])
    header = json.loads(ledger.read_text().splitlines()[0])
    assert header["data"] == described["data"]
    data.load_task.cache_clear()
    assert differences(folder) == []
    file.write_text(file.read_text().replace("#### 2", "#### 3"))
    data.load_task.cache_clear()
    (told,) = differences(folder)
    assert told.startswith("tandem_gsm8k.jsonl is not the file that tandem_gsm8k was read from: 1 of the 4 documents")
    next(folder.rglob("samples_*.jsonl")).unlink()
    assert differences(folder) == ["tandem_gsm8k.jsonl is not the file that tandem_gsm8k was read from."]
    monkeypatch.delenv("TANDEM_DATA")
    (told,) = differences(folder)
    assert "the run read tandem_gsm8k.jsonl from the folder TANDEM_DATA, which is not set here" in told


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (("lm_eval_version",), "lm_eval was 0.0.1 and is "),
        (("config", "tandem", "version"), "lm-eval-tandem was 0.0.1 and is "),
        (("config", "tandem", "versions", "numpy"), "numpy was 0.0.1 and is "),
        (("config", "tandem", "mentor", "vllm"), "vllm was 0.0.1 and is not installed here."),
        (("config", "tandem", "mentor", "bitsandbytes"), "bitsandbytes was 0.0.1 and is not installed here."),
        (("config", "tandem", "intern", "gguf"), "gguf was 0.0.1 and is "),
        (("config", "tandem", "versions", "accelerate"), "accelerate was 0.0.1 and is "),
        (("versions", "tandem_pair_math"), "The task tandem_pair_math had version 0.0.1 and has 1.0 here."),
    ],
)
def test_another_version_is_one_sentence(
    finished: Path, tmp_path: Path, path: Sequence[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = versions.installed
    missing = ("vllm", "bitsandbytes")
    monkeypatch.setattr(versions, "installed", lambda package: None if package in missing else original(package))
    folder = Path(shutil.copytree(finished, tmp_path / "runs"))

    def older(content: dict[str, Any]) -> None:
        inner = content
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = "0.0.1"

    edit_results(folder, older)
    (told,) = differences(folder)
    assert told.startswith(sentence)


def test_older_results_tell_what_they_have(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["reproduce", str(RESULTS / "pair" / "tandem-pair-stage-2")])
    printed = capsys.readouterr().out
    assert "policy=stage:2" in printed
    assert "mentor pair/mentor: not recorded" in printed
    assert "lm-eval-tandem 0.1.0" in printed
    assert "documents of" in printed


def test_what_a_command_cannot_hold_is_left_out(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "runs"))

    def planted(content: dict[str, Any]) -> None:
        content["config"]["model_args"] |= {"hub_token": "hf_secret", "base_url": "http://me:pw@host:8000/v1"}

    edit_results(folder, planted)
    found = only(folder)
    text = " ".join(harness_command.printed(found))
    assert "base_url=http://host:8000/v1" in text
    assert "secret" not in text
    assert "me:pw" not in text
    assert harness_command.left_out(found) == ["base_url", "hub_token"]


def test_a_command_asks_the_same_documents_in_the_same_way(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "runs"))

    def asked(content: dict[str, Any]) -> None:
        content["config"] |= {"limit": None, "gen_kwargs": {"max_gen_toks": 90, "until": ["."]}, "torch_seed": 7}
        content["n-samples"]["tandem_pair_math"] = {"original": 1000, "effective": QUESTIONS}
        content |= {"chat_template_sha": "0", "system_instruction": "Think.", "fewshot_as_multiturn": False}

    edit_results(folder, asked)
    options = harness_command.options(only(folder), "x")
    numbers = ",".join(map(str, range(QUESTIONS)))
    assert options[options.index("--samples") + 1] == f'{{"tandem_pair_math":[{numbers}]}}'
    assert json.loads(options[options.index("--gen_kwargs") + 1]) == {"max_gen_toks": 90, "until": ["."]}
    assert options[options.index("--seed") + 1] == "0,1234,7,1234"
    assert options[options.index("--system_instruction") + 1] == "Think."
    assert options[options.index("--fewshot_as_multiturn") + 1] == "false"
    assert "--apply_chat_template" in options
    assert "--limit" not in options


def test_a_command_asks_with_as_many_examples(tmp_path: Path) -> None:
    """A task's own file may show examples where the command line of the run showed none."""
    task = {
        **{"task": "reproduce_shots", "dataset_path": "json", "test_split": "train", "fewshot_split": "train"},
        **{"dataset_kwargs": {"data_files": str(tmp_path / "questions.jsonl")}, "num_fewshot": 2},
        **{"output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"},
        **{"generation_kwargs": {"max_gen_toks": 8, "until": ["."]}, "metric_list": [{"metric": "exact_match"}]},
    }
    lines = [json.dumps({"question": f"{number} + 1 =", "answer": str(number + 1)}) for number in range(4)]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    (tmp_path / "reproduce_shots.yaml").write_text(json.dumps(task))  # JSON is YAML
    lm_eval(
        *("run", "--model", "hf", "--model_args", f"pretrained={pair.INTERN}", "--tasks", "reproduce_shots"),
        *("--include_path", str(tmp_path), "--device", "cpu", "--limit", "2", "--num_fewshot", "0"),
        *("--output_path", str(tmp_path / "runs"), "--log_samples"),
    )
    then = only(tmp_path / "runs")
    now = rerun.run_again(then, tmp_path / "again")
    prompts = [[sample["arguments"] for sample in run.samples("reproduce_shots") or ()] for run in (then, now)]
    assert prompts[0]
    assert prompts[0] == prompts[1]


def test_a_model_of_the_harness_that_is_not_here_is_one_sentence(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "runs"))

    def elsewhere(content: dict[str, Any]) -> None:
        del content["config"]["tandem"]
        content["config"] |= {"model": "hf", "model_args": {"pretrained": str(tmp_path / "gone")}, "model_sha": ""}

    edit_results(folder, elsewhere)
    assert f"The model {tmp_path / 'gone'} is not here." in differences(folder)


def test_a_model_of_the_harness_has_its_commit(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, references = Path(shutil.copytree(finished, tmp_path / "runs")), tmp_path / "models--org--small" / "refs"
    references.mkdir(parents=True)
    (references / "main").write_text("b" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def of_the_hub(content: dict[str, Any]) -> None:
        del content["config"]["tandem"]
        content["config"] |= {"model": "hf", "model_args": {"pretrained": "org/small"}, "model_sha": "a" * 40}

    edit_results(folder, of_the_hub)
    assert f"The model org/small had the commit {'a' * 40} and has {'b' * 40} here." in differences(folder)


def test_arguments_are_read_back_as_they_are() -> None:
    from lm_eval._cli.utils import key_val_to_dict

    plain = {"policy": "stage:2", "seed": 7, "temperature": 0.6, "record_features": True, "efforts": "18:24:40"}
    assert key_val_to_dict(argument_text(plain)) == plain
    for value in ("7", "true", "a,b", "", "{x}", ["a"], {"b": 1}):
        assert json.loads(argument_text({"name": value})) == {"name": value}


def test_a_run_that_fails_is_told(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "runs"))

    def elsewhere(content: dict[str, Any]) -> None:
        content["config"]["model_args"]["classifier"] = str(tmp_path / "gone")

    edit_results(folder, elsewhere)
    with pytest.raises(SystemExit) as ended:
        cli.main(["reproduce", str(folder), "--run", "--output", str(tmp_path / "again")])
    told = capsys.readouterr()
    assert ended.value.code == 1
    assert "of 1 runs 1 could not be run" in told.err
    assert "could not be run again" in told.out
    assert "No classifier at" in told.out


def test_a_run_that_cannot_be_run_here_does_not_stop_the_others(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    for name in ("1-gone", "2-whole"):
        shutil.copytree(finished, folder / name)

    def elsewhere(content: dict[str, Any]) -> None:
        content["config"]["model_args"]["intern"] = str(tmp_path / "gone")

    edit_results(folder / "1-gone", elsewhere)
    with pytest.raises(SystemExit) as ended:
        cli.main(["reproduce", str(folder), "--run", "--output", str(tmp_path / "again")])
    told = capsys.readouterr()
    assert ended.value.code == 1
    assert "tandem_pair_math: all 12 answers and all 8 scores are as they were." in told.out
    at_end = told.out[told.out.index("1 of 2 runs could not be run here:") :]
    assert "could not be run again" in at_end
    assert str(tmp_path / "again") in at_end
    assert "of 2 runs 1 could not be run" in told.err


def save_adapter(folder: Path, seed: int) -> Path:
    """Save a LoRA adapter of the bundled intern with random weights."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(pair.INTERN)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(folder)
    return folder


def test_an_adapter_has_a_checksum_and_a_changed_one_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save_adapter(tmp_path / "adapter", 0)
    folder = run(tmp_path / "runs", policy="intern", intern="pair", mentor="pair", intern_peft=adapter)
    recorded = only(folder).description["intern"]
    kept = recorded["adapters"]["peft"]
    assert kept == {"name": str(adapter), "sha256": checksum(content_of(adapter))}
    assert differences(folder) == []
    cli.main(["reproduce", str(folder)])
    assert f"intern peft {adapter}: {kept['sha256'][:12]}…" in capsys.readouterr().out
    options = ["--organization", "Test Lab", "--relationship", "other", "--output", str(tmp_path / "out")]
    cli.main(["submit", "every_eval_ever", str(folder), *options])
    (exported,) = [json.loads(file.read_text()) for file in (tmp_path / "out").rglob("*.json")]
    details = exported["model_info"]["additional_details"]
    assert (details["peft_name"], details["peft_sha256"]) == ("adapter", kept["sha256"])
    save_adapter(adapter, 1)
    assert differences(folder) == [f"The files of the adapter {adapter} are not those of the run."]
    shutil.rmtree(adapter)
    assert differences(folder) == [f"The adapter {adapter} is not here."]


def test_output_needs_run(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["reproduce", str(finished), "--output", str(tmp_path)])
    assert "give it with --run" in capsys.readouterr().err
