"""The page at `/`, in a real browser, against a real server with the bundled pair."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")

from lm_eval_tandem.server import page
from server.serving import EASY, HARD, Served, serving

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MARKUP = "<img src=x onerror=\"window.injected='yes'\"><script>window.injected='yes'</script> & <b>bold</b>"
PATIENCE = 300_000
"""Milliseconds; only something that hangs takes as long, however busy the machine is."""
KEY = "a key of these tests"


@dataclass
class Visit:
    """A tab with the page: what the browser asked for, and what it complained of."""

    tab: Any
    address: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def ask(self, question: str, alone: bool = False) -> None:
        self.tab.get_by_label("Question", exact=True).fill(question)
        self.tab.get_by_label("Ask the mentor alone, too").set_checked(alone)
        self.tab.get_by_role("button", name="Ask", exact=True).click()

    def wait_for(self, words: str) -> None:
        """Wait until the status begins with some words."""
        self.tab.locator("#status", has_text=re.compile(f"^{words}")).wait_for()

    def texts(self, selector: str) -> list[str]:
        return [str(text) for text in self.tab.locator(selector).all_text_contents()]

    def row(self, name: str) -> list[str]:
        """The cells of a row of the table of costs."""
        return [str(text) for text in self.tab.locator("tr", has_text=name).locator("td").all_text_contents()]

    @property
    def scrolls_sideways(self) -> bool:
        return bool(self.tab.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="the page is tested with: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("chromium is missing, so the page is not tested; install it with: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, server: Served) -> Iterator[Callable[..., Visit]]:
    """Opens the page in a tab of its own; options are those of playwright's `new_context`."""
    contexts = []

    def open_page(at: str = server.address, ready: bool = True, **options: Any) -> Visit:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        visit = Visit(context.new_page(), at)
        visit.tab.on("request", lambda request: visit.requests.append(request.url))
        visit.tab.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.tab.on(
            "console", lambda told: visit.complaints.append(told.text) if told.type in ("error", "warning") else None
        )
        visit.tab.goto(at)
        if ready:
            visit.tab.locator("#policy option").first.wait_for(state="attached")
        return visit

    yield open_page
    for context in contexts:
        context.close()


def whole_reply(server: Served, model: str, question: str) -> tuple[str, dict[str, Any]]:
    """The answer and the record of a request that is not streamed."""
    reply = server.chat(question, model)
    return str(reply["choices"][0]["message"]["content"]), reply["usage"]["tandem"]


def stream_of(*chunks: dict[str, Any]) -> str:
    """Server-sent events, as a server that is not ours may send them."""
    return "".join(f"data: {json.dumps({'choices': [], **chunk})}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def test_question_is_judged_stage_by_stage_and_answered_as_without_the_page(visit, server):
    opened = visit()
    opened.ask(HARD, alone=True)
    opened.wait_for("Done")
    answer, record = whole_reply(server, "tandem", HARD)
    answer_alone, alone = whole_reply(server, "tandem/mentor", HARD)
    assert record["stage"] > 0, "the question is meant to need the mentor"
    assert opened.texts(".answer .text") == [answer, answer_alone]
    scores = [text for text in opened.texts(".score") if text]
    assert len(scores) == len(record["stages"])
    for shown, judged in zip(scores, record["stages"], strict=True):
        assert f"{judged['score']:.3f}" in shown
        assert f"threshold of {judged['threshold']:.3f}" in shown
        assert ("is above" in shown) == (judged["score"] > judged["threshold"])
    assert all(opened.texts(".insight")), "an insight is empty"
    assert opened.row("Mentor tokens")[:2] == [str(one["tokens"]["mentor_new"]) for one in (record, alone)]
    assert opened.row("Intern tokens")[:2] == [str(one["tokens"]["intern_new"]) for one in (record, alone)]
    share = round(100 * record["tflops"] / alone["tflops"])
    assert opened.row("Cost")[0].startswith(f"{record['tflops'] * 1e6:.3g} ")
    assert opened.row("Cost")[1:] == [f"{alone['tflops'] * 1e6:.3g} MFLOPs", f"{share} %"]
    assert f"{share} % of what the mentor alone took" in opened.texts("#status")[0]
    assert {urlsplit(url).netloc for url in opened.requests if not url.startswith("data:")} == {
        urlsplit(server.address).netloc
    }
    assert opened.complaints == []


def test_mentor_alone_is_not_invented_where_it_was_not_asked(visit):
    opened = visit()
    opened.ask(EASY)
    opened.wait_for("Done")
    assert len(opened.texts(".answer")) == 1
    assert opened.texts("thead th")[1:] == ["cascade"]
    assert "mentor alone" not in opened.texts("#run")[0]
    assert sum(url.endswith("/v1/chat/completions") for url in opened.requests) == 1


def test_policy_can_be_chosen(visit, server):
    opened = visit()
    opened.tab.get_by_label("Policy").select_option("intern")
    assert "alone" in opened.texts("#policy-note")[0]
    opened.ask(HARD)
    opened.wait_for("Done")
    answer, record = whole_reply(server, "tandem/intern", HARD)
    assert opened.texts(".answer .text") == [answer]
    assert opened.row("Mentor tokens") == ["0"]
    assert opened.row("Intern tokens") == [str(record["tokens"]["intern_new"])]
    assert opened.texts(".stages li") == []


def test_markup_in_a_question_is_text(visit):
    opened = visit()
    opened.ask(MARKUP)
    opened.tab.locator("#stop").wait_for(state="hidden")
    assert opened.texts(".asked") == [MARKUP]
    assert MARKUP in opened.texts("#list")[0]
    assert opened.tab.locator("#run img, #run script, #run b:not(.bar b), #last img").count() == 0
    assert opened.tab.evaluate("window.injected") is None


def test_markup_in_whatever_a_server_says_is_text(visit):
    opened = visit()
    said = stream_of(
        {"tandem": {"type": "insight", "stage": 1, "text": MARKUP}},
        {"tandem": {"type": "answer", "writer": MARKUP, "stage": 1}},
        {"choices": [{"delta": {"content": MARKUP}}]},
        {"error": {"message": MARKUP}},
    )
    opened.tab.route("**/v1/chat/completions", lambda route: route.fulfill(body=said, content_type="text/event-stream"))
    opened.ask("What is it?")
    opened.wait_for("No answer")
    assert opened.texts(".insight") == opened.texts(".answer .text") == opened.texts("#run .alarm") == [MARKUP]
    assert opened.tab.locator("#run img, #run script, #run b").count() == 0
    assert opened.tab.evaluate("window.injected") is None
    assert opened.complaints == []


def test_browser_refuses_script_and_foreign_requests_even_if_the_page_had_a_hole(visit):
    opened = visit()
    tried = opened.tab.evaluate(
        """async () => {
            const tried = {};
            try { document.body.insertAdjacentHTML("beforeend", "<i>x</i>"); tried.markup = "done"; }
            catch (error) { tried.markup = error.name; }
            const script = document.createElement("b");
            document.body.append(script);
            try { script.setAttribute("onclick", "window.injected = 'yes'"); script.click(); } catch {}
            tried.handler = window.injected ?? "nothing";
            const foreign = fetch("http://127.0.0.1:9/", { mode: "no-cors" });
            tried.foreign = await foreign.then(() => "done", (error) => error.name);
            return tried;
        }"""
    )
    assert tried == {"markup": "TypeError", "handler": "nothing", "foreign": "TypeError"}
    assert any("connect-src" in told for told in opened.complaints)


def test_error_of_the_server_is_shown(visit):
    opened = visit()
    opened.ask("How many coins? " * 5000)
    opened.wait_for("No answer")
    (alarm,) = opened.texts("#run .alarm")
    assert "does not fit" in alarm
    assert "failed" in opened.texts("#list")[0]
    opened.ask(EASY)
    opened.wait_for("Done")


def test_stop_ends_the_request(visit):
    opened = visit()
    opened.tab.route("**/v1/chat/completions", lambda route: None)
    opened.ask(EASY)
    stop = opened.tab.get_by_role("button", name="Stop", exact=True)
    with opened.tab.expect_event("requestfailed", lambda request: request.url.endswith("/completions")):
        stop.press("Enter")
    opened.wait_for("Stopped")
    assert not stop.is_visible()
    assert opened.tab.evaluate("document.activeElement.id") == "run-title", "the focus is lost with the button"
    opened.tab.unroute("**/v1/chat/completions")
    opened.ask(EASY)
    opened.wait_for("Done")


def test_keyboard_alone_asks_and_reopens(visit):
    opened = visit()
    keyboard = opened.tab.keyboard
    opened.tab.get_by_label("Question", exact=True).focus()
    for question in (EASY, HARD):
        keyboard.press("Control+a")
        keyboard.insert_text(question)
        keyboard.press("Control+Enter")
        opened.wait_for("Done")
    assert opened.texts(".asked") == [HARD]
    assert [HARD in text or EASY in text for text in opened.texts("#list li")] == [True, True]
    for _ in range(40):
        keyboard.press("Tab")
        focused = str(opened.tab.evaluate("document.activeElement.textContent"))
        if opened.tab.evaluate("document.activeElement.closest('#list') !== null") and EASY in focused:
            break
    keyboard.press("Enter")
    assert opened.texts(".asked") == [EASY]
    assert opened.tab.evaluate("document.activeElement.id") == "run-title"
    assert EASY in opened.texts("#list [aria-current=true]")[0]
    assert opened.complaints == []


def test_screen_reader_hears_stages_and_the_end_and_not_every_token(visit):
    opened = visit()
    opened.tab.evaluate(
        """() => {
            window.heard = [];
            const place = document.querySelector("[role=status]");
            const changes = { childList: true, characterData: true, subtree: true };
            new MutationObserver(() => window.heard.push(place.textContent)).observe(place, changes);
        }"""
    )
    opened.ask(HARD)
    opened.wait_for("Done")
    heard = [str(text) for text in opened.tab.evaluate("window.heard")]
    assert len(heard) <= 2 + 2 * len(opened.texts(".stages li")) + 2
    assert heard[-1].startswith("Done in ")
    live = opened.tab.locator("[aria-live], [role=status], [role=alert], [role=log]")
    assert live.count() == 2, "the status, and what is wrong with the form"
    assert opened.tab.locator("[role=status] .answer, [role=status] .insight").count() == 0


@pytest.mark.parametrize("width", [360, 320])
def test_phone_has_no_sideways_scroll(visit, width):
    opened = visit(viewport={"width": width, "height": 740}, is_mobile=True, has_touch=True)
    assert not opened.scrolls_sideways
    opened.ask("x" * 300, alone=True)
    opened.tab.locator("#stop").wait_for(state="hidden")
    assert not opened.scrolls_sideways
    opened.ask(HARD, alone=True)
    opened.wait_for("Done")
    assert not opened.scrolls_sideways
    assert opened.tab.locator("table").evaluate("table => table.getBoundingClientRect().right <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    # axe is put into the page, which the page's own policy forbids
    opened = visit(color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)

    def findings() -> list[str]:
        found = axe.run(opened.tab).response["violations"]
        return [f"{one['impact']} {one['id']}: {one['nodes'][0]['html']}" for one in found]

    assert findings() == []
    opened.ask(HARD, alone=True)
    opened.wait_for("Done")
    assert findings() == []
    opened.ask("How many coins? " * 5000)
    opened.wait_for("No answer")
    opened.tab.get_by_label("Question", exact=True).fill(" ")
    opened.tab.keyboard.press("Control+Enter")
    assert opened.texts("#form-error") == ["Type a question first."]
    assert findings() == []


def test_key_is_asked_for_and_kept_nowhere(visit):
    with serving(["--api-key-env", "TANDEM_TEST_KEY"], {"TANDEM_TEST_KEY": KEY}) as other:
        opened = visit(other.address, ready=False)
        field = opened.tab.get_by_label("Key of this server")
        field.wait_for()
        assert [urlsplit(url).path for url in opened.requests if not url.startswith("data:")] == ["/"]
        assert opened.complaints == []
        hint = "The policies are listed once the server has taken the key."
        assert opened.texts("#policy-note") == [hint]
        field.fill("another")
        field.press("Enter")
        opened.tab.locator("#form-error", has_text="This is not the key of this server.").wait_for()
        field.fill(KEY)
        opened.tab.get_by_role("button", name="Use this key").click()
        opened.tab.locator("#policy option").first.wait_for(state="attached")
        assert opened.texts("#form-error") == [""]
        assert opened.texts("#policy-note") != [hint]
        opened.ask(EASY)
        opened.wait_for("Done")
        kept = "localStorage.length + sessionStorage.length + document.cookie.length"
        assert opened.tab.evaluate(kept) == 0
        assert field.get_attribute("autocomplete") == "off"
        assert not any(KEY in url for url in opened.requests)


def test_models_of_an_ensemble_have_no_roles(visit):
    """Neither in headings nor in figures, although the bundled pair's models are called mentor and intern."""
    arguments = "aggregation=vote,selection=random,count=1"
    with serving(["--model", "ensemble", "--model_args", arguments]) as other:
        opened = visit(other.address)
        opened.tab.get_by_label("Question", exact=True).fill(EASY)
        opened.tab.get_by_role("button", name="Ask", exact=True).click()
        opened.wait_for("Done")
        said = opened.tab.locator("main").inner_text()
        assert "itself" not in said
        assert "The mentor" not in opened.texts("#status")[0]
        assert opened.tab.locator(".answer.both").count() == 1
        assert opened.complaints == []


def test_page_is_one_file_whose_policy_names_its_own_parts(server):
    status, text, headers = server.ask("GET", "/")
    assert (status, text) == (200, page.page_text())
    policy = headers["Content-Security-Policy"]
    assert policy == page.content_security_policy(text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "*" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert len(re.findall(r"<(?:script|style)\b", text)) == 2
    assert re.findall(r"https?://[^'\"\s]+", text) == ["http://www.w3.org/2000/svg"], "the name of a format alone"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\son[a-z]+=|\sstyle=", text)


def test_policy_changes_with_the_script():
    text = page.page_text()
    assert page.content_security_policy(text) != page.content_security_policy(text.replace("</script>", "1</script>"))
