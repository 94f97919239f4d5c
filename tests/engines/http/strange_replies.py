"""Replies as servers of the OpenAI protocol really send them, beside those that its description allows.

`BROKEN` are replies that hold no answer: they are malformed, broken off, withheld, or errors with status 200. `ODD` are
right answers in an unusual form. Each is given for a request without and with a stream.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from engines.http.listener import response

WRONG = "WRONG"
"""Part of the text of every broken reply: it may be stored nowhere."""
RIGHT = "4 and 8 are 12 ✓"
"""The text of every odd reply."""
STREAM = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"


@dataclass
class Strange:
    """One strange reply.

    Attributes
    ----------
    single, streamed
        The packets of the response to a request without and with a stream.
    sentence
        Expression for what the error message says; "" for a right answer.
    """

    single: list[bytes]
    streamed: list[bytes]
    sentence: str = ""

    def packets(self, stream: bool) -> list[bytes]:
        return self.streamed if stream else self.single


def whole(value: Any) -> list[bytes]:
    """A response of JSON."""
    return [response(200, json.dumps(value).encode(), connection="close")]


def events(*values: Any) -> list[bytes]:
    """A stream of chunks."""
    return [STREAM, *(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values), DONE]


def chunk(delta: Any, finish_reason: Any = None, **others: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **others}


def ended(sentence: str, message: Any = None, finish_reason: Any = "stop", **others: Any) -> Strange:
    """An answer with this message (or delta), finish reason and further fields."""
    message = {"role": "assistant", "content": WRONG} if message is None else message
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    parts = [chunk({"content": WRONG}), chunk(message), chunk({}, finish_reason, **others)]
    return Strange(whole({"choices": [choice], **others}), events(*parts), sentence)


def in_place(sentence: str, value: Any) -> Strange:
    """A JSON value in place of a reply, or of a chunk after the first."""
    return Strange(whole(value), events(chunk({"content": WRONG}), value), sentence)


def raw(sentence: str, body: bytes) -> Strange:
    """Bytes in place of a reply, or of the data of a chunk after the first."""
    first = b"data: " + json.dumps(chunk({"content": WRONG})).encode() + b"\n\n"
    return Strange(
        [response(200, body, connection="close")], [STREAM, first, b"data: " + body + b"\n\n", DONE], sentence
    )


def page(sentence: str) -> Strange:
    html = response(200, b"<html>WRONG: sign in</html>", "text/html", connection="close")
    return Strange([html], [html], sentence)


def cut_off() -> Strange:
    """The connection ends in the middle of the body; in a stream, after a part of the answer."""
    (reply,) = whole({"choices": [{"message": {"content": WRONG * 9}, "finish_reason": "stop"}]})
    return Strange([reply[:-30]], events(chunk({"content": WRONG}))[:-1], "the connection broke|the stream broke off")


def exchanged() -> Strange:
    """A stream in place of a whole reply, and the other way round."""
    choice = {"index": 0, "message": {"content": WRONG}, "finish_reason": "stop"}
    answer = events(chunk({"content": WRONG}), chunk({}, "stop"))
    return Strange(
        [b"".join(answer)], whole({"choices": [choice]}), "no completion|a whole reply came in place of a stream"
    )


TEXT = {"role": "assistant", "content": WRONG}

BROKEN: dict[str, Strange] = {
    # types
    "content is a number": ended("no completion: content is int, '5'", {"content": 5}),
    "content is an object": ended("content is an object", {"content": {"text": WRONG}}),
    "a part of the content is an image": ended(
        "a part of the content is an object", {"content": [{"type": "image_url"}]}
    ),
    "a part of the content is a number": ended("a part of the content is int", {"content": [1]}),
    "a text part has no text": ended("text is missing", {"content": [{"type": "text"}]}),
    "reasoning is a list": ended("reasoning is a list", {**TEXT, "reasoning": [WRONG]}),
    "refusal is an object": ended("refusal is an object", {**TEXT, "refusal": {"why": WRONG}}),
    "finish reason is a number": ended("finish_reason is int", finish_reason=1),
    "finish reason is an object": ended("finish_reason is an object", finish_reason={"type": "stop"}),
    "message is text": ended("is text, 'WRONG'", WRONG),
    "choices are an object": in_place("choices is an object", {"choices": {"0": WRONG}}),
    "a choice is null": in_place("a choice is missing", {"choices": [None]}),
    "the reply is a list": in_place("the reply is a list", [WRONG]),
    "the reply is text": in_place("the reply is text", WRONG),
    "the reply is null": in_place("the reply is missing", None),
    "usage is a list": ended("usage is a list", usage=[WRONG]),
    "a number of tokens is text": ended("prompt_tokens is text", usage={"prompt_tokens": "12"}),
    "a number of tokens is negative": ended(
        "completion_tokens is int", usage={"prompt_tokens": 1, "completion_tokens": -1}
    ),
    "a number of tokens is NaN": ended("prompt_tokens is float", usage={"prompt_tokens": float("nan")}),
    "a number of tokens is enormous": ended("prompt_tokens is int", usage={"prompt_tokens": 10**400}),
    "details of the usage are text": ended(
        "details is text", usage={"prompt_tokens": 1, "completion_tokens_details": WRONG}
    ),
    "token ids are text": in_place(
        "token_ids is a list",
        {"choices": [{"message": TEXT, "delta": TEXT, "token_ids": ["7"], "finish_reason": "stop"}]},
    ),
    "token ids are negative": in_place(
        "token_ids is a list",
        {"choices": [{"message": TEXT, "delta": TEXT, "token_ids": [-3], "finish_reason": "stop"}]},
    ),
    # missing fields
    "nothing but an empty object": in_place("the reply is an object|the stream broke off", {}),
    "no choice": in_place("the reply is an object|the stream broke off", {"choices": [], "usage": None}),
    "no message": in_place("text is missing|the stream broke off", {"choices": [{"index": 0, "note": WRONG}]}),
    "no finish reason": ended("no finish reason|the stream broke off", finish_reason=None),
    "finish reason is the word null": ended("no finish reason|the stream broke off", finish_reason="null"),
    "an empty text": Strange(
        whole({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}),
        events(chunk({}, "stop")),
        "was empty",
    ),
    # half characters
    "half a character of UTF-16": ended("half a character", {"content": WRONG + "\ud83d and more"}),
    "second half of a character": ended("half a character", {"content": "\ude00" + WRONG}),
    "half a character of UTF-8": raw("cannot be read", b'{"choices": [{"message": {"content": "WRONG \xe2\x9c"}}]}'),
    # no JSON
    "JSON that is cut off": raw("cannot be read", b'{"choices": [{"message": {"content": "WRONG'),
    "JSON that is nested too deeply": raw("cannot be read", b"[" * 200_000),
    "a page": page("the reply is text, 'WRONG: sign in'|the stream broke off"),
    "a connection that breaks": cut_off(),
    "a stream and a whole reply exchanged": exchanged(),
    # finish reasons
    "finish reason error": ended("finish_reason='error'", finish_reason="error"),
    "finish reason abort": ended("finish_reason='abort'", finish_reason="abort"),
    "finish reason insufficient_system_resource": ended(
        "finish_reason='insufficient_system_resource'", finish_reason="insufficient_system_resource"
    ),
    "finish reason network_error": ended("finish_reason='network_error'", finish_reason="network_error"),
    "finish reason content_filter": ended("content filter withheld", finish_reason="content_filter"),
    "finish reason SAFETY": ended("content filter withheld", finish_reason="SAFETY"),
    "a refusal": ended("the model refused: I cannot", {"content": None, "refusal": "I cannot"}),
    # errors with status 200
    "an error object": in_place(
        "error 502: the provider is down", {"error": {"message": "the provider is down", "code": 502}}
    ),
    "an error of another provider": in_place(
        r"error 503: Provider returned error \(no GPU left\)",
        {"error": {"message": "Provider returned error", "code": 503, "metadata": {"raw": "no GPU left"}}},
    ),
    "an error that is text": in_place("reported an error: out of memory", {"error": "out of memory"}),
    "an error in a list": in_place("reported an error: quota|the reply is a list", [{"error": {"message": "quota"}}]),
    "an error beside the choices": ended("error 429: slow down", error={"message": "slow down", "code": 429}),
    "an error that may not be tried again": ended("error 403: flagged", error={"message": "flagged", "code": 403}),
    "an error in the choice": in_place(
        "reported an error: it broke",
        {"choices": [{"message": TEXT, "delta": TEXT, "finish_reason": "error", "error": {"message": "it broke"}}]},
    ),
    "an error of the older form": in_place("reported an error: no slot", {"object": "error", "message": "no slot"}),
    "an error event": Strange(
        whole({"type": "error", "error": {"message": "overloaded"}}),
        [
            STREAM,
            *events(chunk({"content": WRONG}))[1:2],
            b'event: error\ndata: {"error": {"message": "overloaded"}}\n\n',
        ],
        "reported an error: overloaded",
    ),
}


def odd(message: Any, finish_reason: str = "stop") -> Strange:
    """A right answer with this message (or delta) and finish reason."""
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return Strange(whole({"choices": [choice]}), events(chunk(message), chunk({}, finish_reason)))


def in_events(*packets: bytes) -> Strange:
    """A right answer whose stream has this form."""
    return Strange(odd({"content": RIGHT}).single, list(packets))


def data(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


MARK = "✓".encode()
ODD: dict[str, Strange] = {
    "text parts": odd({"content": [{"type": "text", "text": RIGHT[:5]}, {"type": "text", "text": RIGHT[5:]}]}),
    "parts that are text": odd({"content": [RIGHT[:5], RIGHT[5:]]}),
    "thinking parts": odd(
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "4 + 8"}]},
                {"type": "text", "text": RIGHT},
                {"type": "reference", "reference_ids": [1]},
            ]
        }
    ),
    **{
        f"finish reason {reason}": odd({"content": RIGHT}, reason)
        for reason in ("eos", "eos_token", "STOP", "end_turn")
    },
    "numbers of tokens with a point": Strange(
        whole({"choices": [{"message": {"content": RIGHT}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9.0}}),
        events(chunk({"content": RIGHT}), chunk({}, "stop", usage={"prompt_tokens": 9.0, "completion_tokens": 4.0})),
    ),
    "finish reasons that are empty": Strange(
        odd({"content": RIGHT}).single,
        events(
            chunk({"role": "assistant"}, ""),
            chunk({"content": RIGHT[:5]}, ""),
            chunk({"content": RIGHT[5:]}, "null"),
            chunk({}, "stop"),
        ),
    ),
    "comments and pings": in_events(
        STREAM,
        b": OPENROUTER PROCESSING\n\n",
        data({"type": "ping"}),
        data(chunk({"content": RIGHT})),
        b": keep-alive\n\n",
        data({"choices": []}),
        data(chunk({}, "stop")),
        DONE,
    ),
    "lines that end with CR LF": in_events(
        STREAM, (data(chunk({"content": RIGHT})) + data(chunk({}, "stop")) + DONE).replace(b"\n", b"\r\n")
    ),
    "no DONE at the end": in_events(STREAM, data(chunk({"content": RIGHT})), data(chunk({}, "stop"))),
    "a character in two packets": in_events(
        STREAM,
        *(data(chunk({"content": RIGHT})).partition(MARK[:2])[i] for i in (0, 1, 2)),
        data(chunk({}, "stop")),
        DONE,
    ),
    "a character in two chunks": Strange(
        odd({"content": RIGHT + "\ud83d\ude00"}).single,
        events(chunk({"content": RIGHT + "\ud83d"}), chunk({"content": "\ude00"}), chunk({}, "stop")),
    ),
}
