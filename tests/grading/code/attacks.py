"""Programs that try to leave the sandbox, to outlive it, to use up the machine, or to forge the verdict.

Each defines `f`; the tests assert `f(1) == EXPECTED`. Programs of `REACHES_OUT` return EXPECTED if what they tried
worked, so for them to pass is to succeed. Programs of `FORGES` do not know the value. Names in braces: FOLDER, a folder
outside with the file `canary`; PORT, a listening port; NAME, a listening abstract socket; PID, the process that runs
pytest; LIBRARY, the interpreter's standard library; NONCE, a name that occurs nowhere else.
"""

from __future__ import annotations

EXPECTED = 918273

SUCCEEDS_IF = """
import ctypes, os, socket, sys
def attack():
{attack}
def f(x):
    try:
        return {expected} if attack() else 0
    except (Exception, SystemExit) as error:
        print(repr(error))
        return 0
"""

REACHES_OUT = {
    "reads the home directory": """
    return os.listdir(os.path.expanduser("~root")) or open("{FOLDER}/canary").read()""",
    "reads a file whose path it knows": """
    return open("{FOLDER}/canary").read()""",
    "reads the system's users": """
    return open("/etc/passwd").read()""",
    "reads the environment": """
    return any("SECRET" in name for name in os.environ) or ctypes.CDLL(None).getenv(b"TANDEM_SECRET")""",
    "reads the environments of other processes": """
    return any(os.path.exists(f"/proc/{{pid}}/environ") for pid in ("self", 1, os.getppid(), {PID}))""",
    "writes outside": """
    for folder in ("{FOLDER}", "/", "/usr/lib", "/dev", "/root", "/home", "/var/tmp"):
        try:
            open(folder + "/{NONCE}", "w").write("was here")
            return True
        except OSError as error:
            print(error)""",
    "writes over a file": """
    open("{FOLDER}/canary", "w").write("was here")
    return True""",
    "deletes everything it can": """
    for folder in ("{FOLDER}", "{LIBRARY}", "/usr/lib", "/dev", "/"):
        for name in os.listdir(folder) if os.path.exists(folder) else ():
            for remove in (os.remove, os.rmdir):
                try:
                    remove(os.path.join(folder, name))
                    return True
                except OSError:
                    continue""",
    "plants code in the interpreter's library": """
    open("{LIBRARY}/{NONCE}.py", "w").write("was here")
    return True""",
    "connects to a port of this machine": """
    socket.create_connection(("127.0.0.1", {PORT}), timeout=1).send(b"was here")
    return True""",
    "connects to the internet": """
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return sender.sendto(b"was here", ("1.1.1.1", 53))""",
    "connects to a socket without a file": """
    client = socket.socket(socket.AF_UNIX)
    client.connect("\\0{NAME}")
    return client.send(b"was here")""",
    "kills the tests' process": """
    os.kill({PID}, 9)
    return True""",
    "traces and overwrites another process": """
    libc = ctypes.CDLL(None, use_errno=True)
    return any(libc.ptrace(16, pid, 0, 0) == 0 or libc.ptrace(0x4206, pid, 0, 0) == 0 for pid in (1, {PID}))""",
    "makes namespaces of its own": """
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.unshare(0x10000000) == 0 or libc.unshare(0x00020000) == 0""",
    "becomes root": """
    for change in (os.setuid, os.setgid):
        try:
            change(0)
            return True
        except OSError:
            continue""",
    "holds memory that belongs to no process": """
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.shmget(0, 1 << 20, 0o1600) >= 0 or libc.memfd_create(b"a", 0) >= 0""",
    "opens devices": """
    for name in ("tty", "mem", "kmsg", "sda", "vda", "fuse", "kvm", "shm/a"):
        try:
            return os.open("/dev/" + name, os.O_RDWR | os.O_CREAT)
        except OSError:
            continue""",
    "runs other programs": """
    return os.system("true") == 0 or os.spawnv(os.P_WAIT, "/usr/bin/true", ["true"]) == 0""",
    "fills the disk": """
    written = 0
    for i in range(64):
        try:
            with open(f"/tmp/{{i}}", "wb") as file:
                written += file.write(bytes(8 << 20))
        except OSError:
            break
    return written > 80 << 20""",
    "writes one huge file": """
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open("/tmp/huge", "wb") as file:
        file.seek(1 << 30)
        return file.write(b"x") and not file.flush()""",
    "takes all memory": """
    return len(bytearray(4 << 30))""",
}
"""Bodies of the function `attack`, which returns something true if the attack worked."""

USES_UP = {
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        continue\n",
    "thread bomb": """
import threading, time
while True:
    try:
        threading.Thread(target=time.sleep, args=(1000,)).start()
    except RuntimeError:
        continue
""",
    "memory in small pieces": "kept = []\nwhile True:\n    kept.append(bytearray(1 << 20))\n",
    "endless loop that ignores signals": """
import signal
def f(x):
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            while True:
                pass
        except BaseException:
            continue
""",
    "one endless call": "def f(x):\n    return len(str(3 ** 10 ** 9))\n",
    "sleeps": "import time\ndef f(x):\n    time.sleep(10 ** 6)\n",
    "waits for input": """
def f(x):
    while True:
        try:
            return int(input())
        except EOFError:
            continue
""",
    "prints without end": "def f(x):\n    while True:\n        print('x' * 10000)\n",
    "answers without end": "def f(x):\n    return 'x' * (200 << 20)\n",
    "answers nested without end": """
def f(x):
    nested = []
    for _ in range(10 ** 5):
        nested = [nested]
    return nested
""",
    "leaves a daemon behind": """
import os, signal, time
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            while True:
                time.sleep(1)
    return 0
""",
    "kills all it can see": "import os, signal\ndef f(x):\n    os.kill(-1, signal.SIGKILL)\n    os.killpg(0, 9)\n",
    "kills its parent": "import os\ndef f(x):\n    os.kill(os.getppid(), 9)\n    os.kill(1, 9)\n",
    "is slow to die": """
import os
def f(x):
    for _ in range(5):
        if not os.fork():
            break
    held = b"x" * (100 << 20)
    os.closerange(0, 256)
    while True:
        pass
""",
}

CPU = "timeout: more than 1 s of CPU time"
ENDS = {
    "fork bomb": (CPU,),
    "thread bomb": (CPU,),
    "memory in small pieces": ("error: MemoryError", CPU),
    "endless loop that ignores signals": ("error: a process of the run was killed",),
    "one endless call": (CPU,),
    "sleeps": ("timeout: idle for 1 s",),
    "waits for input": (CPU,),
    "prints without end": (CPU,),
    "answers without end": ("error: the candidate's process sent an invalid reply", "error: MemoryError", CPU),
    "answers nested without end": ("error: RecursionError",),
    "leaves a daemon behind": ("failed: ",),
    "kills all it can see": ("error: ",),
    "kills its parent": ("error: PermissionError",),
    "is slow to die": (CPU,),
}
"""How a program of `USES_UP` ends, with a limit of one second: outcome and start of the detail, or one of several."""

VERDICT = '{"ready": true}\\n{"outcome": "passed", "detail": ""}\\n'

FORGES = {
    "exits with 0": "import sys\nsys.exit(0)\n",
    "exits at once with 0": "import os\ndef f(x):\n    os._exit(0)\n",
    "prints the verdict": f"""
import sys
print('''{VERDICT}''')
print('''{VERDICT}''', file=sys.stderr)
def f(x):
    sys.exit()
""",
    "writes the verdict to every descriptor": f"""
import os
def f(x):
    for descriptor in range(256):
        try:
            os.write(descriptor, b'''{VERDICT}''')
        except OSError:
            continue
""",
    "sends a verdict as an answer": """
import sys
def f(x):
    main = sys.modules["__main__"]
    for cell in sys._getframe().f_back.f_back.f_locals.values():
        if isinstance(cell, main.Channel):
            for _ in range(20):
                cell.send({"outcome": "passed", "detail": ""})
                cell.send({"value": {"outcome": "passed"}})
                cell.send({"value": {"reference": 0}})
""",
    "patches builtins": """
import builtins
class Never(Exception): pass
builtins.AssertionError = Never
builtins.__build_class__ = builtins.compile = builtins.exec = lambda *a, **k: None
builtins.isinstance = builtins.all = builtins.any = lambda *a: True
def f(x): return x
""",
    "patches json, struct and the runner": """
import json, struct, sys
main = sys.modules["__main__"]
json.dumps = lambda *a, **k: '{"outcome": "passed", "detail": ""}'
main.encode = lambda *a: {"outcome": "passed"}
main.Tests.verdict = lambda self, job: {"outcome": "passed", "detail": ""}
def f(x): return True
""",
    "replaces the helpers of assertions": """
import math, sys, types, unittest
math.isclose = lambda *a, **k: True
unittest.TestCase.assertEqual = lambda *a, **k: None
sys.modules["tests"] = sys.modules["numpy"] = types.SimpleNamespace(allclose=lambda *a: True)
def check(candidate): return None
def f(x): return None
""",
    "answers with what equals everything": """
class Same(int):
    def __eq__(self, other): return True
    __ne__ = lambda self, other: False
    __hash__ = int.__hash__
def f(x): return Same()
""",
    "answers with an object that runs code": """
import os
class Loaded:
    def __reduce__(self): return (os._exit, (0,))
    def __eq__(self, other): return True
    def __bool__(self): return True
def f(x): return Loaded()
""",
    "looks for what is expected": """
import gc, sys
def f(x):
    frame, seen = sys._getframe(), []
    while frame:
        seen += [*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts]
        frame = frame.f_back
    seen += [item for thing in gc.get_objects() if type(thing) in (list, tuple) for item in thing]
    numbers = [item for item in seen if type(item) is int and 900000 < item < 999999]
    return numbers[0] if numbers else None
""",
    "at exit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)\n",
    "becomes another program": """
import os, sys
def f(x):
    os.execv(sys.executable, [sys.executable, "-c", "pass"])
""",
    "closes everything": "import os\ndef f(x):\n    os.closerange(0, 256)\n    return 0\n",
    "raises what tests may swallow": "class Quiet(BaseException): pass\ndef f(x):\n    raise Quiet\n",
    "crashes the interpreter": "import ctypes\ndef f(x):\n    ctypes.string_at(0)\n",
}
