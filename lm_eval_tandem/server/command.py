"""The command `lm-eval-tandem serve`: loads the models, and serves them until it is told to stop.

SIGTERM and Ctrl-C let every accepted request end within `--drain-timeout`; nothing new is accepted meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from lm_eval_tandem.errors import ArgumentError, install

if TYPE_CHECKING:
    from lm_eval_tandem.harness.answering import AnsweringLM
    from lm_eval_tandem.server.service import Service

BUNDLED_BATCH = 16
"""Batch size where neither models nor a batch size are given: the bundled pair is small."""
KEEP_ALIVE = 75
"""Seconds that a connection without a request stays open: longer than clients keep one for their next request."""
BACKLOG = 2048
REFUSED = {
    "ledger": "a server has no end at which it could be written; take the log, or usage.tandem of the replies",
    "record_features": "features are collected with lm-eval-tandem collect",
    "record_insights": 'a request asks for them with "tandem": {"insights": true}',
}
"""Model arguments that a server does not take, and why."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--config", type=Path, default=None, help="YAML file as for run, instead of --model_args")
    parser.add_argument("--model", choices=("tandem", "ensemble"), default=None, help="what --model_args are of")
    parser.add_argument("--model_args", default="", help="as for lm_eval --model tandem (default: the bundled pair)")
    parser.add_argument("--batch_size", default=None, help="as for lm_eval (bundled pair: 16)")
    parser.add_argument("--device", default=None, help="as for lm_eval")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 for a free one (default: 8000)")
    parser.add_argument(
        "--api-key-env",
        default=None,
        metavar="NAME",
        help="environment variable with the key that clients have to send; needed unless the address is this machine's",
    )
    parser.add_argument("--max-body-bytes", type=int, default=1_000_000, help="largest request (default: 1000000)")
    parser.add_argument("--read-seconds", type=float, default=30.0, help="within which it has to arrive (default: 30)")
    parser.add_argument(
        "--max-tokens", type=int, default=None, help="longest answer that may be asked for (default: what fits)"
    )
    parser.add_argument(
        "--max-requests",
        type=int,
        default=None,
        help="answers under way at once; beyond them requests get status 429 (default: four batches)",
    )
    parser.add_argument(
        "--drain-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="after SIGTERM or Ctrl-C, accepted requests have so long to end; those that have not get status 503 "
        "(default: 30)",
    )
    parser.add_argument(
        "--intern-if-mentor-fails",
        action="store_true",
        help="where the mentor cannot be reached or fails, the intern answers alone, and the reply says so; when the "
        "server starts, the mentor has to be there",
    )


def serve(given: argparse.Namespace) -> None:
    """Serve until the process is told to stop.

    Raises
    ------
    TandemError
        Before anything is served: an option or a model argument cannot work.
    """
    try:
        from lm_eval_tandem.server.app import make_app
    except ImportError as error:
        raise ArgumentError(f"serve needs {error.name}; install it with {install('server')}.") from error
    from lm_eval_tandem.server.guard import GuardOptions, is_loopback
    from lm_eval_tandem.server.request_log import RequestLog

    model, arguments, config = read_model(given)
    check_numbers(given)
    key = read_key(given.api_key_env)
    if not key and not is_loopback(given.host):
        raise ArgumentError(
            f"--host {given.host} can be reached from other machines, so a key is needed; put one into an environment "
            "variable and give its name as --api-key-env NAME, or use --host 127.0.0.1."
        )
    guard = GuardOptions(key, not key, given.max_body_bytes, given.read_seconds)
    with listening_socket(given.host, given.port) as listener:
        signal.signal(signal.SIGTERM, stop)  # from here on there is something to close
        print("serve: loading the models.", file=sys.stderr, flush=True)
        lm = load(model, arguments)
        try:
            service = make_service(lm, given, config)
            gc.collect()
            gc.freeze()  # what is loaded stays; to look through it for garbage again stops all answers for long
            listener.listen(BACKLOG)  # whoever reads the next line may connect
            host, port = listener.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            print(f"serve: {', '.join(service.offers.names)} at {address}/v1", file=sys.stderr, flush=True)
            app = make_app(service, guard, RequestLog())
            run(app, listener, given.read_seconds, given.drain_timeout, service.break_off)
        finally:
            lm.close()


def read_model(given: argparse.Namespace) -> tuple[str, dict[str, Any], Mapping[str, Any]]:
    """Which model, with which arguments, and the other entries of the configuration."""
    from lm_eval.utils import simple_parse_args_string

    from lm_eval_tandem.harness.own_questions import MODELS, RUNNING, complete, read_config, settings_of
    from lm_eval_tandem.harness.requests import sampling_of
    from lm_eval_tandem.harness.settings import check_one_policy

    if given.config is not None and (given.model_args or given.model):
        raise ArgumentError("--config and --model or --model_args were both given; keep the file, or the others.")
    config: Mapping[str, Any] = {} if given.config is None else read_config(given.config, "serve")
    model = config.get("model", given.model or MODELS[0])
    arguments = dict(config["model_args"]) if config else simple_parse_args_string(given.model_args)
    sampling_of({"until": [], **config.get("gen_kwargs", {})}, 1, 0)  # refuses what has no meaning
    for name in RUNNING:
        beside = getattr(given, name, None) or config.get(name)
        if beside is not None:
            arguments.setdefault(name, beside)
    arguments = complete(model, arguments)
    for name, why in REFUSED.items():
        if name in arguments:
            raise ArgumentError(f"{name}={arguments[name]} has no effect under serve: {why}; leave it out.")
    if not any(name in arguments for name in ("mentor", "intern", "models", "batch_size")):
        arguments["batch_size"] = BUNDLED_BATCH
    settings = settings_of(model, arguments)
    if model == MODELS[0] and None in settings.roles.values():  # one model alone can do no other policy
        check_one_policy(arguments)
    return model, arguments, config


def check_numbers(given: argparse.Namespace) -> None:
    """Refuse limits that would let nothing through."""
    if not 0 <= given.drain_timeout < math.inf:
        raise ArgumentError(f"--drain-timeout {given.drain_timeout} is no time; give a number of seconds from 0.")
    for name in ("max_body_bytes", "max_tokens", "max_requests", "read_seconds"):
        value = getattr(given, name)
        if value is not None and not value > 0:
            raise ArgumentError(f"--{name.replace('_', '-')} {value} lets nothing through; give a number above 0.")
    if not 0 <= given.port < 65536:
        raise ArgumentError(f"--port {given.port} is no port; give a number from 0 (any free one) to 65535.")


def read_key(variable: str | None) -> str:
    """The key in an environment variable; "" where none was named."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ArgumentError(f"--api-key-env {variable}: this environment variable is empty; set it to the key.")
    return key


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound, and listens once the server runs: a port that is taken is noticed before models load."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ArgumentError(
            f"--host {host} --port {port} cannot be listened at ({error.strerror}); give another address or port."
        ) from None
    return listener


def load(model: str, arguments: Mapping[str, Any]) -> AnsweringLM:
    """The loaded models."""
    from lm_eval_tandem.harness import own_questions

    return own_questions.load(model, arguments)


def make_service(lm: AnsweringLM, given: argparse.Namespace, config: Mapping[str, Any]) -> Service:
    """The service of loaded models, under the limits of the command line."""
    from lm_eval_tandem.server.errors import RequestError
    from lm_eval_tandem.server.service import Service
    from lm_eval_tandem.server.work import Limits

    limits = Limits(given.max_tokens, given.max_requests or lm.max_under_way)
    system = str(config.get("system_instruction") or "")
    try:
        return Service(lm, limits, config.get("gen_kwargs"), system, given.intern_if_mentor_fails)
    except RequestError:
        raise ArgumentError(
            "--intern-if-mentor-fails needs an intern that can answer alone, and a mentor that may fail, so it cannot "
            "be used with an ensemble or with policy=mentor; leave it out."
        ) from None


def stop(number: int, frame: FrameType | None) -> None:
    """End the process on SIGTERM; while requests are served, uvicorn takes it first and raises it again afterwards."""
    raise SystemExit(0)


def run(
    app: Any, listener: socket.socket, read_seconds: float, drain_timeout: float, break_off: Callable[[], int]
) -> None:
    """Serve until SIGTERM or Ctrl-C, and then until every accepted request has ended, or was broken off."""
    import uvicorn

    from lm_eval_tandem.server.connections import Connection
    from lm_eval_tandem.server.draining import DrainingServer

    config = uvicorn.Config(
        app,
        http=partial(Connection, read_seconds),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        backlog=BACKLOG,
    )
    DrainingServer(config, drain_timeout, break_off).run(sockets=[listener])
