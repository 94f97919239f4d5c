"""The page at `/`: one file, which a browser shows without asking any other host.

Its Content-Security-Policy names the page's own style and script by their hashes, so nothing else can be run or loaded,
whatever a question or an answer contains. The page is served without a key; it asks for one where the server needs it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import re

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from lm_eval_tandem.server.request_log import ENTRY

KEY_NOT_NEEDED, KEY_NEEDED = 'data-key="none"', 'data-key="needed"'
"""What the page's first element says of a key; without one it asks the server at once."""


@functools.cache
def page_text() -> str:
    """The page as it lies in the package, with line breaks as a browser counts them for a hash."""
    file = importlib.resources.files("lm_eval_tandem.server").joinpath("page.html")
    return file.read_text(encoding="utf-8")


def content_security_policy(page: str) -> str:
    """What a browser may run and load for this page: its inline style and script, and the server that it comes from.

    Parameters
    ----------
    page
        The HTML text. Its style and its script stand in `<style>` and `<script>` elements without attributes.

    Examples
    --------
    >>> content_security_policy("<script>1</script>").split("; ")[1]
    "script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='"
    """
    sources = {"script": "'none'", "style": "'none'"}
    for name in sources:
        parts = re.findall(rf"<{name}>(.*?)</{name}>", page, flags=re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        sources[name] = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {sources['script']}",
            f"style-src {sources['style']}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            # no text can become markup or script, even by a mistake in the page's own script
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def page_headers(page: str) -> dict[str, str]:
    """The headers that the page is sent with."""
    return {
        "Content-Security-Policy": content_security_policy(page),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def page_response(key_needed: bool) -> HTMLResponse:
    """The answer to a request for `/`.

    Parameters
    ----------
    key_needed
        Whether the server answers only who sends its key; the page then asks for it before anything else.
    """
    page = page_text()
    if key_needed:
        page = page.replace(KEY_NOT_NEEDED, KEY_NEEDED, 1)
    return HTMLResponse(page, headers=page_headers(page))


def add_page(app: FastAPI, key_needed: bool) -> None:
    """Serve the page at `/`; `key_needed` as for `page_response`."""

    async def page(request: Request) -> HTMLResponse:
        entry = request.scope.get(ENTRY)
        if entry is not None:  # behind the guard, which logs it
            entry.route = "/"
        return page_response(key_needed)

    app.add_api_route("/", page, methods=["GET", "HEAD"], response_class=HTMLResponse, include_in_schema=False)
