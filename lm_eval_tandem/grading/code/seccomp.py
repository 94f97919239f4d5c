"""System calls that a graded program has no business with, as a filter for the kernel.

They would make namespaces of its own, reach into other processes or the kernel's key rings, or hold memory that no
limit counts. Each fails inside the sandbox as if it were not permitted. On other machines than those named here there
is no filter; everything else of the sandbox holds there too.
"""

from __future__ import annotations

import errno
import platform
import struct

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The kernel's names of the machines (linux/audit.h)."""
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
NEW_USER_NAMESPACE = 0x10000000
LOWEST_X32 = 0x40000000
"""From here on x86_64 has a second set of numbers for the same calls."""
REFUSED = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "memfd_create": (319, 279),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "memfd_secret": (447, 447),
}
"""Numbers on x86_64 and on aarch64."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000


def program(machine: str | None = None) -> bytes | None:
    """The filter in the kernel's form (an array of `struct sock_filter`), or None for a machine not known here."""
    machine = machine or platform.machine()
    if machine not in AUDIT:
        return None
    refused = _FAIL | errno.EPERM
    steps = [
        _step(_LOAD, 4),
        _step(_EQUAL, AUDIT[machine], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, 0),
        _step(_AT_LEAST, LOWEST_X32, 0, 1),
        _step(_RETURN, refused),
        _step(_EQUAL, CLONE3, 0, 1),
        _step(_RETURN, _FAIL | errno.ENOSYS),  # its flags lie out of a filter's sight; the C library then uses clone
    ]
    for numbers in REFUSED.values():
        steps += [_step(_EQUAL, numbers[machine == "aarch64"], 0, 1), _step(_RETURN, refused)]
    steps += [
        _step(_EQUAL, CLONE[machine], 0, 3),
        _step(_LOAD, 16),
        _step(_ANY_BIT, NEW_USER_NAMESPACE, 0, 1),
        _step(_RETURN, refused),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(steps)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
