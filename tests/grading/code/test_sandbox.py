"""Attacks on the sandbox: none changes anything outside, passes or overruns its time, and the next run works."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from grading.code.attacks import ENDS, EXPECTED, FORGES, REACHES_OUT, SUCCEEDS_IF, USES_UP
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.grading.code import sandbox, seccomp
from lm_eval_tandem.grading.code.pipes import Reader
from lm_eval_tandem.grading.code.sandbox import Limits, Program, SandboxError

LIMITS = {"seconds": 1.0, "idle_seconds": 1.0, "wall_seconds": 120.0}
LAST_RESORT = f"no verdict after {LIMITS['wall_seconds']:g} s"
TESTS = f"assert f(1) == {EXPECTED}\n"
RIGHT = Program((f"def f(x):\n    return {EXPECTED}\n",), TESTS, ("f",))

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and not os.environ.get("CI"),
    reason="bubblewrap is not installed (apt-get install bubblewrap)",
)


@dataclass
class Machine:
    """What an attack could change outside of the sandbox, and how the change is noticed."""

    folder: Path
    nonce: str
    limits: Limits
    port: int
    listeners: list[socket.socket]
    reached: list[bytes]

    def placeholders(self) -> dict[str, object]:
        """Values for the names in braces in an attack's source."""
        return {
            "FOLDER": self.folder,
            "NONCE": self.nonce,
            "PORT": self.port,
            "NAME": self.nonce,
            "PID": os.getpid(),
            "LIBRARY": Path(os.__file__).parent,
        }

    def state(self) -> object:
        """What has to be the same before and after an attack."""
        files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        around = [Path("/"), Path("/usr/lib"), Path("/dev"), Path.home(), Path("/var/tmp"), Path(os.__file__).parent]
        planted = [folder for folder in around if list(folder.glob(f"{self.nonce}*"))]
        return files, planted, dict(os.environ), Path.cwd(), self.reached[:]

    def left_behind(self) -> list[str]:
        """Processes of this test's runs that still exist: their command lines hold its random memory limit."""
        mark = f'"RLIMIT_AS": {self.limits.memory}'.encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if mark in command:
                found.append(process.name)
        return found


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A folder with a canary file, a secret in the environment, and two sockets that record connections."""
    (tmp_path / "canary").write_text("alive")
    monkeypatch.setenv("TANDEM_SECRET", "SECRET")
    nonce = f"tandem_{uuid.uuid4().hex}"
    inet, unix = socket.socket(), socket.socket(socket.AF_UNIX)
    inet.bind(("127.0.0.1", 0))
    unix.bind(f"\0{nonce}")
    memory = (1 << 30) + 4096 * random.randrange(1, 10_000)
    port = inet.getsockname()[1]
    found = Machine(tmp_path, nonce, Limits(**LIMITS, memory=memory), port, [inet, unix], [])

    def notice(listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        found.reached.append(client.recv(100))

    for listener in found.listeners:
        listener.listen()
        threading.Thread(target=notice, args=(listener,), daemon=True).start()
    yield found
    for listener in found.listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def attack(machine: Machine, source: str) -> sandbox.Verdict:
    """Run an attack, and check that nothing outside has changed and that the next run gets its right verdict."""
    before = machine.state()
    verdict = sandbox.run(Program((source,), TESTS, ("f",)), machine.limits)
    assert verdict.detail != LAST_RESORT, "no limit but that of the clock has ended it"
    assert machine.left_behind() == []
    assert machine.state() == before
    assert not verdict.passed, verdict
    assert len(verdict.output) <= machine.limits.output
    assert verdict.isolation == "bubblewrap"
    assert sandbox.run(RIGHT, machine.limits).passed
    return verdict


@needs_bubblewrap
@pytest.mark.parametrize("name", REACHES_OUT)
def test_nothing_outside_can_be_reached(machine: Machine, name: str) -> None:
    body = REACHES_OUT[name].format(**machine.placeholders()).lstrip("\n")
    assert attack(machine, SUCCEEDS_IF.format(attack=body, expected=EXPECTED)).outcome in ("failed", "error")


@needs_bubblewrap
@pytest.mark.parametrize("name", USES_UP)
def test_no_attack_exhausts_the_machine_or_outlives_its_run(machine: Machine, name: str) -> None:
    verdict = attack(machine, USES_UP[name])
    assert f"{verdict.outcome}: {verdict.detail}".startswith(ENDS[name]), verdict


@needs_bubblewrap
@pytest.mark.parametrize("name", FORGES)
def test_no_verdict_is_forged(machine: Machine, name: str) -> None:
    assert attack(machine, FORGES[name]).outcome in ("failed", "error")


@needs_bubblewrap
def test_a_bare_except_in_the_tests_does_not_hide_that_the_code_is_gone() -> None:
    tests = "try:\n    f(1)\nexcept:\n    pass\n"
    verdict = sandbox.run(Program(("import os\ndef f(x):\n    os._exit(0)\n",), tests, ("f",)))
    assert (verdict.outcome, verdict.detail) == ("error", "the candidate's process ended")


@needs_bubblewrap
def test_a_chain_of_processes_that_never_uses_up_its_cpu_time_is_ended_by_the_clock(machine: Machine) -> None:
    code = "import os, time\ndef f(x):\n    if os.fork():\n        time.sleep(1000)\n    while True:\n"
    code += "        sum(range(10 ** 6))\n        if os.fork():\n            os._exit(0)\n"
    limits = dataclasses.replace(machine.limits, wall_seconds=3.0)
    verdict = sandbox.run(Program((code,), TESTS, ("f",)), limits)
    assert (verdict.outcome, verdict.detail) == ("timeout", "no verdict after 3 s")
    assert machine.left_behind() == []


BUSY = """
import os, time
def f(x):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for _ in range(5):
        if not os.fork():
            while True:
                pass
    end = time.process_time() + x
    while time.process_time() < end:
        pass
    return x
"""
"""Takes x seconds of CPU time, and much longer by the clock: five other processes want the same core."""


@needs_bubblewrap
def test_a_busy_machine_changes_no_verdict() -> None:
    limits = Limits(seconds=1.0, idle_seconds=1.0)
    assert sandbox.run(Program((BUSY,), "assert f(0.5) == 0.5\n", ("f",)), limits).outcome == "passed"
    longer = sandbox.run(Program((BUSY,), "assert f(2) == 2\n", ("f",)), limits)
    assert (longer.outcome, longer.detail) == ("timeout", "more than 1 s of CPU time")


@needs_bubblewrap
def test_a_program_whose_output_is_read_late_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a busy machine: between two reads of this process, the program has long filled the pipe and waits.
    read = Reader._read

    def late(reader: Reader, seconds: float) -> None:
        read(reader, seconds)
        time.sleep(0.3)

    monkeypatch.setattr(Reader, "_read", late)
    code = "def f(x):\n    for _ in range(1000):\n        print('x' * 1000)\n    return x\n"
    verdict = sandbox.run(Program((code,), "assert f(1) == 1\n", ("f",)), Limits(idle_seconds=1.0))
    assert verdict.passed, verdict


@needs_bubblewrap
def test_a_program_may_sleep_for_less_than_the_limit_of_idle_time() -> None:
    program = Program(("import time\ndef f(x):\n    time.sleep(1)\n    return 1\n",), "assert f(1) == 1\n", ("f",))
    assert sandbox.run(program, Limits(idle_seconds=30.0)).passed
    assert sandbox.run(program, Limits(idle_seconds=0.5)).detail == "idle for 0.5 s"


@needs_bubblewrap
def test_cpu_time_of_the_tests_counts_too() -> None:
    verdict = sandbox.run(Program(("def f(x): return x\n",), "while f(1):\n    pass\n", ("f",)), Limits(seconds=1.0))
    assert (verdict.outcome, verdict.detail) == ("timeout", "more than 1 s of CPU time")


@needs_bubblewrap
def test_devices_can_be_used_by_the_user_of_a_run() -> None:
    code = "import os, subprocess\ndef f(x):\n    open(os.devnull, 'w').write('x')\n    open('/dev/null').read()\n"
    code += "    return subprocess.DEVNULL and len(open('/dev/urandom', 'rb').read(x))\n"
    verdict = sandbox.run(Program((code,), "assert f(4) == 4\n", ("f",)))
    assert verdict.passed, verdict


@needs_bubblewrap
def test_a_fork_bomb_has_no_more_processes_than_its_limit() -> None:
    count = "import os, time\ndef f(x):\n    n = 0\n    try:\n        while os.fork():\n            n += 1\n"
    code = count + "        time.sleep(1000)\n    except OSError:\n        return n\n"
    limits = Limits(processes=6)
    assert sandbox.run(Program((code,), "assert 0 < f(1) < 6\n", ("f",)), limits).passed


@needs_bubblewrap
def test_plain_data_travels_as_it_is_and_arguments_change_in_place() -> None:
    values = (
        "[None, True, -0.0, float('inf'), 2 ** 2000, -7, 'a\\ud800\\n', b'\\0', bytearray(b'a'), 1j, range(2, 9, 3), "
        "(), (1,), {1, 2}, frozenset([(1, 2)]), {(1, 2): {'a': [1.5]}, None: 3}, Decimal('1.10'), Fraction(1, 3)]"
    )
    setup = "from decimal import Decimal\nfrom fractions import Fraction\n"
    code = setup + "def f(x):\n    return x\ndef g(x, *, more):\n    x.append(more)\n    return iter(x)\n"
    code += "class C:\n    def __call__(self): return self.__class__ is C\n"
    tests = f"value = {values}\nback = f(value)\nassert repr(back) == repr(value) and list(map(type, back)) == "
    tests += "list(map(type, value))\na = [1]\nassert list(g(a, more=(2, 3))) == [1, (2, 3)] == a\n"
    tests += "c = C()\nassert c != C() and f(c)() is True\n"
    verdict = sandbox.run(Program((code,), tests, ("f", "g", "C"), setup=setup))
    assert verdict.passed, verdict


AS_IN_PLAIN_PYTHON = {
    "keys": ("def f(x): return {x: 2}.keys()", "assert set(f(1)) == {1} == f(1); assert len(f(1)) == 1 and 1 in f(1)"),
    "values": ("def f(x): return {1: x}.values()", "assert list(f(2)) == [2] and sum(f(2)) == 2"),
    "items": ("def f(x): return {1: x}.items()", "assert f(2) == {(1, 2)} == {1: 2}.items()"),
    "endless iterator": (
        "import itertools\ndef f(x): return itertools.count(x)",
        "from itertools import islice\ng = f(3)\nassert list(islice(g, 3)) == [3, 4, 5] and next(g) == 6",
    ),
    "generator": (
        "def f(x):\n    yield 1\n    yield from [x, 0]",
        "assert list(f(2)) == [1, 2, 0] and sorted(f(2)) == [0, 1, 2] and sum(f(2)) == 3 and 0 in f(2)\n"
        "assert [*map(lambda i: 2 * i, f(5))] == [2, 10, 0]",
    ),
    "own iterator": (
        "class C:\n    def __init__(self): self.i = 0\n    def __iter__(self): return self\n"
        "    def __next__(self):\n        if self.i == 2: raise StopIteration\n"
        "        self.i += 1\n        return self.i\n"
        "def f(): return C()",
        "assert list(f()) == [1, 2]",
    ),
    "deque": (
        "from collections import deque\ndef f(x): return deque([x])",
        "from collections import deque\nassert f(1) == deque([1]) and list(f(1)) == [1] and f(2)[0] == 2",
    ),
    "dates": (
        "from datetime import *\ndef f(x):\n    d = datetime(2020, x, 2, 3, 4, 5, 6)\n"
        "    return d, d.date(), d.time(), d.replace(tzinfo=timezone.utc), timedelta(1, 2, 3), [d.date()]",
        "from datetime import *\nd = datetime(2020, 1, 2, 3, 4, 5, 6)\n"
        "aware = d.replace(tzinfo=timezone.utc)\n"
        "assert f(1) == (d, d.date(), d.time(), aware, timedelta(1, 2, 3), [date(2020, 1, 2)])\n"
        "assert f(1)[0].year == 2020 and f(1)[1] < date(2020, 1, 3)",
    ),
    "named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x count')\ndef f(x): return P(x, 2)\n"
        "def g(p): return p.x",
        "p = f(1)\nassert p == (1, 2) and (p.x, p.count) == (1, 2) and g(p) == 1 and p[0] == 1\n"
        "assert p._fields == ('x', 'count') and p._asdict() == {'x': 1, 'count': 2}",
    ),
    "objects": (
        "class N:\n    def __init__(self, v): self.v, self.next = v, None\n    def double(self): return 2 * self.v\n"
        "    def __len__(self): return 3\n    def __getitem__(self, i): return [4, 5][i]\n"
        "    def __str__(self): return 'node'\ndef f(n): return n.next.v\n",
        "n = N(1)\nn.next = N(2)\nassert f(n) == 2 == n.next.v and n.double() == 2 and n.next is n.next and n\n"
        "assert (len(n), n[1], list(n), str(n)) == (3, 5, [4, 5], 'node') and n != N(1)",
    ),
    "functions": ("def f(g, x): return g(x)\ndef g(x): return 2 * x", "assert f(g, 2) == 4"),
    "own errors": (
        "class E(ValueError): pass\ndef f(): raise E('no')",
        "try:\n    f()\nexcept ValueError as error:\n    assert 'no' in str(error)\nelse:\n    assert False",
    ),
    "unused missing modules": (
        "import numpy as np, math\nfrom torch import nn\ndef f(x: int): return math.floor(x)",
        "assert f(2.5) == 2",
    ),
}
"""Programs with tests that hold without a sandbox, for values that are not lists, numbers and strings."""


@needs_bubblewrap
@pytest.mark.parametrize("name", AS_IN_PLAIN_PYTHON)
def test_tests_see_a_result_as_in_plain_python(name: str) -> None:
    code, tests = AS_IN_PLAIN_PYTHON[name]
    verdict = sandbox.run(Program((code,), tests, ("f", "g", "N")))
    assert verdict.passed, verdict


@needs_bubblewrap
@pytest.mark.parametrize("use", ["    return np.floor(x)", "    return x\ny = np.zeros(3)", "    return pd.x(x)"])
def test_a_missing_module_fails_where_it_is_used(use: str) -> None:
    code = f"import numpy as np\nfrom pandas import *\ndef f(x):\n{use}\n"
    verdict = sandbox.run(Program((code,), "assert f(1) == 1", ("f",)))
    assert verdict.outcome == "error"
    assert re.match(r"ModuleNotFoundError: No module named '(numpy|pandas)'", verdict.detail)


@needs_bubblewrap
def test_objects_of_the_candidate_equal_only_themselves_whatever_they_say() -> None:
    code = "class Same:\n    def __eq__(self, other): return True\n    __lt__ = __gt__ = __contains__ = __eq__\n"
    code += "    def __hash__(self): return 5\n    __index__ = __int__ = __hash__\n"
    code += "    def __iter__(self): return iter([0])\ndef f(x): return Same()\n"
    tests = "f(1) == 5, 5 == f(1), f(1) < 5, 5 < f(1), 5 in f(1), f(1) in [5], {5: 1}[f(1)], not f(1) != 5"
    for test in tests.split(", "):
        assert not sandbox.run(Program((code,), f"assert {test}", ("f",))).passed, test


@needs_bubblewrap
def test_a_name_that_the_code_does_not_define_is_a_name_error() -> None:
    verdict = sandbox.run(Program(("def g(x): return x",), "assert f(1) == 1", ("f",)))
    assert (verdict.outcome, verdict.detail) == ("error", "NameError: name 'f' is not defined")


@needs_bubblewrap
def test_a_run_that_the_kernel_has_killed_is_decided_by_a_second_one(tmp_path: Path) -> None:
    # What the kernel does when memory runs out, the test does: it kills the process of the tests, once.
    verdicts: list[sandbox.Verdict] = []
    memory = (1 << 30) + 4096 * random.randrange(1, 10_000)
    slow = Program(("import time\ndef f(x):\n    time.sleep(3)\n    return 1\n",), "assert f(1) == 1\n", ("f",))
    thread = threading.Thread(target=lambda: verdicts.append(sandbox.run(slow, Limits(memory=memory))))
    thread.start()
    killed = False
    while not killed and thread.is_alive():
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                mine = any(f'"RLIMIT_AS": {memory}'.encode() in word and b'"tests"' in word for word in words)
                if mine and b"python" in words[0]:
                    os.kill(int(process.name), signal.SIGKILL)
                    killed = True
    thread.join()
    assert killed
    assert verdicts[0].passed, verdicts


@needs_bubblewrap
def test_exceptions_keep_their_names_and_never_let_tests_pass_by_accident() -> None:
    tests = "try:\n    f(1)\nexcept ZeroDivisionError as error:\n    assert str(error) == 'division by zero'\n"
    code = "def f(x):\n    return x / 0\n"
    assert sandbox.run(Program((code,), tests + "else:\n    assert False\n", ("f",))).passed
    assert sandbox.run(Program((code,), "f(1)\n", ("f",))).detail == "ZeroDivisionError: division by zero"


@needs_bubblewrap
def test_many_threads_grade_at_once_and_each_gets_its_own_verdict() -> None:
    limits = Limits(seconds=1.0)
    sources = [f"def f(x):\n    return {EXPECTED if i % 3 else i}\n" for i in range(24)]
    sources[8] = "def f(x):\n    while True: pass\n"
    sources[9] = "import os\nos.kill(os.getpid(), 9)\n"
    programs = [Program((source,), TESTS, ("f",)) for source in sources]
    with ThreadPoolExecutor(6) as pool:
        outcomes = [verdict.outcome for verdict in pool.map(lambda program: sandbox.run(program, limits), programs)]
    wanted = ["passed" if i % 3 else "failed" for i in range(24)]
    wanted[8:10] = ["timeout", "error"]
    assert outcomes == wanted


def test_without_bubblewrap_it_refuses_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(sandbox.VARIABLE, raising=False)
    sandbox._problem.cache_clear()
    try:
        with pytest.raises(SandboxError, match=r"apt-get install bubblewrap.*TANDEM_SANDBOX=process"):
            sandbox.require()
    finally:
        sandbox._problem.cache_clear()


def test_where_bubblewrap_does_not_work_it_refuses_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv(sandbox.VARIABLE, raising=False)
    sandbox._problem.cache_clear()
    try:
        with pytest.raises(SandboxError, match="No permissions to create new namespace"):
            sandbox.require()
    finally:
        sandbox._problem.cache_clear()


def test_a_plain_subprocess_runs_only_by_the_variable_and_the_verdict_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sandbox.VARIABLE, "process")
    assert sandbox.require() == "process"
    verdict = sandbox.run(RIGHT)
    assert verdict.passed
    assert verdict.isolation == "process"
    loop = Program(("def f(x):\n    while True: pass\n",), TESTS, ("f",))
    assert sandbox.run(loop, Limits(seconds=0.5)).outcome == "timeout"
    memory = Program(("def f(x):\n    return len(bytearray(4 << 30))\n",), TESTS, ("f",))
    assert sandbox.run(memory).detail.startswith("MemoryError")


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sandbox.VARIABLE, "docker")
    with pytest.raises(ArgumentError, match="bubblewrap, process"):
        sandbox.isolation_level()


def test_the_filter_of_system_calls_is_whole_instructions_for_known_machines_only() -> None:
    for machine in ("x86_64", "aarch64"):
        call_filter = seccomp.build_filter(machine)
        assert call_filter is not None
        assert len(call_filter) % 8 == 0
    assert seccomp.build_filter("sparc") is None
