"""README.md, docs/ and the site: output names its command, links lead somewhere, nothing is loaded from elsewhere."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

from command_line import command, results, run
from lm_eval_tandem import ledger_file
from lm_eval_tandem.accounting import Spent, Tokens
from lm_eval_tandem.cascade.policies import POLICIES
from lm_eval_tandem.cascade.prompts import Prompts, Question, Wording
from lm_eval_tandem.ensembles.strategies import AGGREGATIONS, SELECTIONS
from lm_eval_tandem.ledger import Judgement, Record, Segment

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "docs" / "outputs.py"

if not TOOL.is_file():
    pytest.skip("the tests were copied without docs/", allow_module_level=True)

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
GENERATED = {"changelog.md", "contributing.md", "security.md", "tasks", "examples", "results"}
"""Parts of the site that docs/pages.py brings from elsewhere in the repository."""


# --- the source files


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_output_names_the_command_that_makes_it(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    unmarked = [n for n, line in enumerate(lines) if line == "```text" and not lines[n - 1].endswith("-->")]
    assert not unmarked, f"output without its command at lines {[n + 1 for n in unmarked]} of {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_of_the_repository_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    folders = "lm_eval_tandem|tests|task_configs|benchmarks|docs|examples|classifiers|results"
    named = re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def code_blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language on a page of docs/, in their order; "" for those without a language."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [block for name, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if name == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_lm_eval_say_where_the_package_s_tasks_are(page: Path) -> None:
    """The bare command knows them by --include_path alone."""
    commands = re.findall(r"^\s*lm_eval .*", page.read_text(encoding="utf-8").replace("\\\n", ""), re.MULTILINE)
    missing = [one for one in commands if re.search("--tasks tandem_", one) and "--include_path" not in one]
    assert missing == []


def test_the_task_of_one_s_own_runs_and_shows_its_costs(tmp_path: Path) -> None:
    folder = tmp_path / "my_tasks"
    folder.mkdir()
    (question,) = code_blocks("tasks.md", "json")
    test, train = code_blocks("tasks.md", "yaml")
    (grading,) = code_blocks("tasks.md", "python")
    contents = {"coins_test.jsonl": question, "coins_train.jsonl": question * 2, "coins.py": grading}
    contents |= {"coins.yaml": test, "coins_train.yaml": train}
    for name, content in contents.items():
        assert name in (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
        (folder / name).write_text(content, encoding="utf-8")
    line = command("coins,coins_train", policy="stage:1", dtype="float32", device="cpu")
    run([*line, "--include_path", "my_tasks", "--output_path", "out", "--log_samples"], tmp_path)
    found = results(tmp_path / "out")
    assert {task: count["effective"] for task, count in found["n-samples"].items()} == {"coins": 1, "coins_train": 2}
    figures = {name.partition(",")[0]: value for name, value in found["results"]["coins"].items()}
    assert {"acc", "length", "tflops", "stage"} <= set(figures)
    assert figures["stage"] == 1
    assert figures["length"] > 0


def test_the_wording_on_the_page_makes_the_prompt_on_the_page(tmp_path: Path) -> None:
    (wording,) = code_blocks("real-models.md", "json")
    (prompt,) = code_blocks("real-models.md", "")
    (tmp_path / "notes.json").write_text(wording, encoding="utf-8")
    prompts = Prompts(Wording.read(tmp_path / "notes.json"))
    read = prompts.as_read("3 boxes\n3 x 12 = 36\nSo it is", cut_off=True)
    asked = Question("How many are 3 boxes of 12 eggs?")
    assert prompts.intern(None, asked, read) == prompt  # type: ignore[arg-type]  # plain text needs no engine


def test_every_field_of_a_ledger_is_explained() -> None:
    """The rows are the fields that `ledger_file.lines_of` writes, no more and no fewer."""
    record = Record(
        **{"task": "t", "doc_id": 0, "repeat": 0, "policy": "all", "stage": 0, "reason": "", "finish_reason": "stop"},
        **{"mentor_finish_reason": None, "mentor_stages": 0, "tokens": Tokens(), "tflops": 0.0, "bill": 0.0},
        **{"judge_seconds": 0.0, "generate_seconds": 0.0, "stages": [Judgement(0, None, None, 0, 0, 0.0, insight="")]},
        **{"segments": [Segment("a", 1, 1)], "spent": {"NAME": Spent()}, "selected": ["a"], "cached": {"a": 1}},
        **{"selection_scores": {"a": 1.0}, "response_scores": {"a": None}, "answer_sha256": "0"},
    )
    (line,) = ledger_file.lines_of([record])
    written = set()
    for name, value in line.items():
        if name == "tokens":
            written |= {f"tokens.{inner}" for inner in value}
        elif name == "spent":
            written |= {f"spent.NAME.{inner}" for inner in value["NAME"]}
        elif name in ("stages", "segments"):
            written |= {f"{name}[].{inner}" for inner in value[0]}
        else:
            written.add(name)
    section = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8").split("## In the ledger")[1].split("\n## ")[0]
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    explained = [name for cell in first for name in re.findall("`([^`]+)`", cell)]
    assert len(explained) == len(set(explained))
    assert set(explained) == written


@pytest.mark.parametrize(
    ("overview", "argument", "folder", "names"),
    [
        ("policies.md", "policy", "policies", {kind.syntax for kind in POLICIES.values()} - {"intern", "mentor"}),
        ("ensembles.md", "selection", "selections", set(SELECTIONS) - {"all"}),
        ("ensembles.md", "aggregation", "aggregations", set(AGGREGATIONS) - {"one"}),
    ],
)
def test_every_policy_and_strategy_has_a_page_with_its_picture_and_a_command(
    overview: str, argument: str, folder: str, names: set[str]
) -> None:
    """All but those where one model answers alone, or, with `all`, nothing is selected."""
    table = (ROOT / "docs" / overview).read_text(encoding="utf-8")
    pages = dict(re.findall(rf"^\| \[`(.+)`\]\(({folder}/\w+\.md)\)", table, re.M))
    assert set(pages) == names
    for name, page in pages.items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        _, what_it_does, picture, *_ = text.split("\n\n")
        assert f"`{argument}={name}`" in what_it_does
        assert len(what_it_does.splitlines()) <= 5
        assert re.fullmatch(r"```\n(.+\n)+```", picture)
        assert "\n## When to use it\n" in text
        assert len(re.findall(r"^```sh\n.+?^```\n\n<!-- output of: \{above\}", text, re.M | re.S)) == 1


ROWS = {
    "intern alone": "intern",
    "fixed low": "stage:1",
    "fixed medium": "stage:2",
    "fixed high": "stage:3",
    "always stage 3": "stage:3",
    "mentor alone": "mentor",
    "budget forcing": "budget_forcing:120",
    "LLM cascade": "llm_cascade",
    "cascade, the paper's recipe": "cascade (paper)",
    "cascade": "cascade (pair)",
    "oracle": "oracle (not a policy)",
}
"""How the documentation calls the rows of the bundled pair's report."""


@pytest.mark.parametrize(
    ("page", "rows", "columns"),
    [
        ("README.md", 5, ("accuracy %", "cost / always-high %")),
        ("docs/pair.md", 10, ("accuracy %", "cost / mentor %", "cost / always-high %")),
    ],
)
def test_the_figures_of_the_bundled_pair_are_those_of_its_report(
    page: str, rows: int, columns: tuple[str, ...]
) -> None:
    report: dict[str, list[str]] = {name: [] for name in ROWS.values()}
    for domain in ("math", "code"):
        table = ROOT / f"results/pair/tables/policies-tandem-pair-{domain}-the-bundled-pair.csv"
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["policy"] in report:  # a policy has no cost relative to itself
                    report[row["policy"]] += [f"{float(row[column] or 100):.1f}" for column in columns]
    compared = 0
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        first, *cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        policy = ROWS.get(first.split(" (")[0])
        if policy is not None and len(cells) == 2 * len(columns):
            assert [f"{float(cell.rstrip(' %')):.1f}" for cell in cells] == report[policy], first
            compared += 1
    assert compared == rows


# --- docs/outputs.py


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("outputs", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FENCED = "<!-- output of: echo one -->\n```text\n{}```\n"
MARKDOWN = "<!-- output of: echo two -->\n\n{}\n<!-- end of output -->\n"


def test_a_block_is_replaced_by_what_its_command_prints(tool: ModuleType) -> None:
    page = "Before.\n\n" + FENCED + "\nBetween.\n\n" + MARKDOWN + "\nAfter.\n"
    renewed = tool.renewed(page.format("old\n", "old\n"), lambda command: f"<{command}>\n")
    assert renewed == page.format("<echo one>\n", "<echo two>\n")
    assert tool.renewed(renewed, lambda command: f"<{command}>\n") == renewed


def test_a_command_can_be_that_of_the_page_itself(tool: ModuleType) -> None:
    page = "```sh\necho one\n```\n\n<!-- output of: {above} | tr e E -->\n```text\n```\n"
    assert tool.renewed(page).endswith("-->\n```text\nonE\n```\n")


@pytest.mark.parametrize(("content", "code", "message"), [("one\n", 0, ""), ("two\n", 1, "-two\n+one\n")])
def test_check_fails_where_a_page_differs_and_write_mends_it(
    content: str, code: int, message: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(FENCED.format(content))
    checked = subprocess.run([sys.executable, TOOL, "--check", page], capture_output=True, text=True)
    assert checked.returncode == code
    assert message in checked.stdout
    assert page.read_text() == FENCED.format(content), "--check changed a page"
    subprocess.run([sys.executable, TOOL, "--write", page], check=True)
    assert page.read_text() == FENCED.format("one\n")


@pytest.mark.parametrize("command", ["false", "false | cat", "true", "echo half; exit 3"])
def test_a_command_that_fails_or_prints_nothing_is_named_and_leaves_the_page_alone(
    command: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"<!-- output of: {command} -->\n```text\nold\n```\n")
    written = subprocess.run([sys.executable, TOOL, "--write", page], capture_output=True, text=True)
    assert written.returncode == 1
    assert f"{page}: a command failed" in written.stderr
    assert "old\n" in page.read_text()


# --- the built site (make docs)


@dataclass
class Document(HTMLParser):
    """A page of the site: its anchors, its links, and what a browser loads with it."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.classes |= set(given.get("class", "").split())
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("link", "use", "image") and "href" in given:
            self.loaded.append(given["href"])
        self.loaded += [given[name] for name in ("src", "data", "poster", "xlink:href") if name in given]
        self.loaded += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        self.loaded += loaded_by_css(given.get("style", ""))


def loaded_by_css(text: str) -> list[str]:
    """Addresses that a style sheet loads."""
    found = re.findall(r"""(?:url\(|@import\s+)\s*["']?([^"')\s;]+)""", text)
    return [address for address in found if not address.startswith(("data:", "#"))]


@pytest.fixture(scope="module")
def site() -> Path:
    """The folder that `make docs` builds; `make docs-check` insists on it."""
    folder = ROOT / os.environ.get("DOCS_SITE", "build/site")
    if not (folder / "index.html").is_file():
        if "DOCS_SITE" in os.environ:
            pytest.fail(f"{folder} holds no site; run make docs")
        pytest.skip("the site is not built (make docs)")
    return folder


@pytest.fixture(scope="module")
def documents(site: Path) -> dict[Path, Document]:
    return {path.resolve(): Document(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def test_every_link_of_the_site_leads_to_a_page_and_a_place_in_it(documents: dict[Path, Document]) -> None:
    dead = []
    for path, document in documents.items():
        for address in (*document.links, *document.loaded):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            page = documents.get(target)
            if not target.is_file() or (parts.fragment and page and unquote(parts.fragment) not in page.anchors):
                dead.append(f"{path.name}: {address}")
    assert dead == []


def test_every_page_of_the_site_is_reached_from_the_first(documents: dict[Path, Document], site: Path) -> None:
    reached, waiting = set(), [(site / "index.html").resolve()]
    while waiting:
        path = waiting.pop()
        if path in documents and path not in reached:
            reached.add(path)
            waiting += [(path.parent / unquote(urlsplit(link).path)).resolve() for link in documents[path].links]
    assert sorted(path.name for path in set(documents) - reached) == []


KNOWN_IN_SCRIPTS = {
    "https://unpkg.com/mermaid@11/dist/mermaid.min.js",  # only for elements of the class mermaid
    "https://unpkg.com/resize-observer-polyfill",  # only in browsers without ResizeObserver, of before 2020
    "https://api.github.com/repos/",  # only with repo_url in mkdocs.yml
    "https://api.github.com/users/",
}
"""What the theme's scripts can load, and when."""


def test_nothing_of_the_site_is_loaded_from_another_host(documents: dict[Path, Document], site: Path) -> None:
    loaded = {path.name: [each for each in page.loaded if urlsplit(each).netloc] for path, page in documents.items()}
    loaded |= {path.name: loaded_by_css(path.read_text(encoding="utf-8")) for path in site.rglob("*.css")}
    assert {name: found for name, found in loaded.items() if any(urlsplit(each).netloc for each in found)} == {}
    scripts = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.js"))
    assert set(re.findall(r"https?://(?:unpkg|cdn|api|fonts)[\w./@-]+", scripts)) <= KNOWN_IN_SCRIPTS
    assert not {"mermaid", "md-source"} & set().union(*(page.classes for page in documents.values()))


def test_the_pages_quote_no_folder_of_the_machine_that_built_them(documents: dict[Path, Document]) -> None:
    home = [str(ROOT), str(Path(sys.prefix).resolve())]
    assert [path.name for path in documents if any(name in path.read_text(encoding="utf-8") for name in home)] == []
