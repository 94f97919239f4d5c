"""What a question tells while it is answered, for whoever shows it live: a server, a page.

`Cascade.answer` and `Ensemble.answer` take a `Watcher`. Its methods are called in the event loop of the question, in
the order in which things happen, and have to return at once. A watcher changes nothing: the answer, its record and
what a store keeps are the same without one.

Where the coroutine is cancelled, the models stop working on the question, and no method is called any more.
"""

from __future__ import annotations

from lm_eval_tandem.ledger import Judgement


class Watcher:
    """Watches one question; this one does nothing, and a subclass overrides what it wants to know.

    Attributes
    ----------
    watches_insights
        Whether `insight_grew` is wanted: insights are not decoded while they are written where it is not.
    """

    watches_insights = True

    def insight_grew(self, stage: int, text: str) -> None:
        """The mentor's insight so far, `text`, while it writes up to this stage; it only grows.

        With `guidance=handoff` that is the beginning of an answer, and where it is sure to be that of this one (a fixed
        stage, `policy=handoff:N`), it is told as such alone.
        """

    def stage_judged(self, judgement: Judgement, passed: bool) -> None:
        """The judge has scored a stage; `passed` says whether the mentor stops here."""

    def answer_begun(self, writer: str, stage: int) -> None:
        """From now on the answer is written. Called once, before the answer grows.

        Parameters
        ----------
        writer
            "mentor", "intern", or the name of a model of an ensemble; "" where several write it by turns.
        stage
            As in `Record.stage`; 1 for an answer of steps, of which only the end shows whether the mentor wrote any.
        """

    def answer_grew(self, text: str) -> None:
        """The answer so far; each call's text begins with that of the call before, and so does the final answer.

        The last call has the final answer, unless that is empty. Only where something goes wrong may the final answer
        be another one, which is then not told here: a model ends its thinking a second time, which takes back what it
        has said between (`think_end_token=`); or a server breaks off, and writes another text when it is asked again.
        """


SILENT = Watcher()
"""Where nobody watches."""
