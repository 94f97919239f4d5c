"""What the harness itself can push and log has the right names and columns with a tandem."""

from __future__ import annotations

import json
import shutil
import subprocess
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.loggers import WandbLogger
from lm_eval.tasks import TaskManager

import command_line
import hub_server
from bundled import COMMON
from lm_eval_tandem import _paths, pair
from lm_eval_tandem.harness.model import TandemLM

COSTS = ("length", "mentor_tokens", "tflops", "mflops", "stage", "truncated")


def intern_with_a_first_token(folder: Path) -> Path:
    """The bundled intern, its tokenizer having a token that begins a text.

    Without one the harness writes [null, "None"] into the results, which pyarrow cannot read, and so it ends with an
    error after it has pushed everything but the data set's card, whatever the model.
    """
    shutil.copytree(pair.INTERN, folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bos_token": "<pad>"}))
    return folder


def test_results_and_samples_are_pushed_under_the_name_of_the_run(tmp_path: Path) -> None:
    given = "hub_results_org=lab,details_repo_name=details,results_repo_name=results,push_results_to_hub=True"
    given += ",push_samples_to_hub=True,public_repo=True"
    intern = intern_with_a_first_token(tmp_path / "small")
    with hub_server.DatasetHub().running() as hub:
        environment = command_line.ENVIRONMENT | {
            **{"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_abcdefghijklmnop"},
            **{"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"},
        }
        command = command_line.command("tandem_pair_math", mentor="pair", intern=intern, policy="stage:1")
        command += ["--limit", "4", "--log_samples", "--output_path", str(tmp_path / "out"), "--device", "cpu"]
        command += ["--hf_hub_log_args", given]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=command_line.PATIENCE
        )
    assert done.returncode == 0, done.stderr + str(hub.refused)
    assert set(hub.repositories) == {"lab/results", "lab/details"}
    assert hub.tokens - {""} == {"Bearer hf_abcdefghijklmnop"}
    name = "tandem-mentor_small-stage-1"
    (results,) = hub.repositories["lab/results"]
    assert results.startswith(f"{name}/results_")
    pushed = json.loads(hub.repositories["lab/results"][results])
    assert pushed["config"]["tandem"]["policy"] == "stage:1"
    assert pushed["model_name"] == name
    details = hub.repositories["lab/details"]
    (samples,) = (file for file in details if file.startswith(f"{name}/samples_tandem_pair_math_"))
    columns = set(json.loads(details[samples].splitlines()[0]))
    assert {"acc", *COSTS, "resps", "doc", "target"} <= columns
    card = details["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    names = {one["config_name"] for one in front["configs"]}
    assert f"{name}__tandem_pair_math" in names
    assert names <= {f"{name}__tandem_pair_math", f"{name}__results"}  # which release 0.4.13 leaves out
    assert f"Evaluation run of {name}" in card


@pytest.fixture(scope="module")
def evaluated() -> dict[str, Any]:
    """Results and samples as the harness hands them to its loggers."""
    lm = TandemLM(policy="stage:1", **COMMON)
    tasks = TaskManager(include_path=str(_paths.task_configs()), include_defaults=False)
    results = simple_evaluate(lm, tasks=["tandem_pair_math"], limit=3, task_manager=tasks, bootstrap_iters=0)
    lm.close()
    assert results is not None
    return dict(results)


def wandb_logger(evaluated: dict[str, Any]) -> WandbLogger:
    """The harness's logger without the run that its constructor starts."""
    logger = WandbLogger.__new__(WandbLogger)
    logger.post_init({name: value for name, value in evaluated.items() if name != "samples"})
    logger._get_config()
    return logger


def test_weights_and_biases_gets_a_column_per_metric(evaluated: dict[str, Any]) -> None:
    logger = wandb_logger(evaluated)
    samples = evaluated["samples"]["tandem_pair_math"]
    table = logger._generate_dataset(samples, logger.task_configs["tandem_pair_math"])
    assert list(table.columns[:7]) == [
        *("id", "data", "input_len", "labels", "output_type", "raw_predictions", "filtered_predictions"),
    ]
    assert set(table.columns[7:]) == {"acc", "no_answer", *COSTS}
    assert table["raw_predictions"].tolist() == [sample["resps"][0][0] for sample in samples]
    for name in COSTS:
        assert table[name].tolist() == [sample[name] for sample in samples]
        value = logger._sanitize_results_dict()[1][f"tandem_pair_math/{name}"]
        assert value == pytest.approx(table[name].mean())


def test_trackio_gets_a_trace_with_the_metrics(evaluated: dict[str, Any]) -> None:
    trackio_logger = pytest.importorskip("lm_eval.loggers.trackio_logger", reason="this release has none")
    recorder = types.SimpleNamespace(Trace=lambda **fields: fields)
    sample = evaluated["samples"]["tandem_pair_math"][0]
    trace = trackio_logger._sample_to_trace(recorder, sample, "tandem_pair_math", "generate_until")
    assert [message["content"] for message in trace["messages"]] == [sample["doc"]["question"], sample["resps"][0][0]]
    assert {name: trace["metadata"][name] for name in COSTS} == {name: sample[name] for name in COSTS}


def test_metrics_that_no_sample_has_are_in_no_list(evaluated: dict[str, Any]) -> None:
    tasks = TaskManager(include_path=str(_paths.task_configs()), include_defaults=False)
    task = tasks.load(["tandem_pair_math"])["tasks"]["tandem_pair_math"]
    listed = [entry["metric"] for entry in task.dump_config()["metric_list"]]
    assert {"dollars", *COSTS} <= set(listed)
    task.process_results({"answer": 3}, ["Answer: 3"])  # of a model without costs
    assert [entry["metric"] for entry in task.dump_config()["metric_list"]] == ["acc", "no_answer"]
    recorded = [entry["metric"] for entry in evaluated["configs"]["tandem_pair_math"]["metric_list"]]
    assert recorded == [name for name in listed if name != "dollars"]
