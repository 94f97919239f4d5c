"""Builds the seccomp filter: system calls that the kernel refuses to a graded program.

The refused calls would create namespaces, reach into other processes or the kernel's key rings, or hold memory that no
limit counts. Each fails inside the sandbox with EPERM. For machine types other than those in `AUDIT_ARCHITECTURE` there
is no filter; all other parts of the sandbox work there too.
"""

from __future__ import annotations

import errno
import platform
import struct

AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The kernel's constants for the machine types (AUDIT_ARCH_… in linux/audit.h)."""
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
CLONE_NEWUSER = 0x10000000
"""Flag of `clone` that creates a user namespace (linux/sched.h)."""
LOWEST_X32 = 0x40000000
"""From this number on, x86_64 has a second set of numbers for the same calls (the x32 ABI)."""
REFUSED_CALLS = {
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
"""System calls by name, with their numbers on x86_64 and on aarch64."""

# Instructions of classic BPF (linux/bpf_common.h) and actions of seccomp (linux/seccomp.h).
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
# Offsets in bytes into `struct seccomp_data`.
_CALL_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16


def build_filter(machine: str | None = None) -> bytes | None:
    """Build the filter for a machine type.

    Parameters
    ----------
    machine
        Machine type as `platform.machine` returns it; by default that of this machine.

    Returns
    -------
    bytes or None
        An array of `struct sock_filter`, eight bytes each; None for a machine type that is not known here.
    """
    machine = machine or platform.machine()
    if machine not in AUDIT_ARCHITECTURE:
        return None
    refuse = _FAIL | errno.EPERM
    instructions = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, AUDIT_ARCHITECTURE[machine], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _CALL_NUMBER),
        _instruction(_AT_LEAST, LOWEST_X32, 0, 1),
        _instruction(_RETURN, refuse),
        # A filter cannot read the flags of clone3, which lie in memory; after ENOSYS the C library uses clone.
        _instruction(_EQUAL, CLONE3, 0, 1),
        _instruction(_RETURN, _FAIL | errno.ENOSYS),
    ]
    for numbers in REFUSED_CALLS.values():
        instructions += [_instruction(_EQUAL, numbers[machine == "aarch64"], 0, 1), _instruction(_RETURN, refuse)]
    instructions += [
        _instruction(_EQUAL, CLONE[machine], 0, 3),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_ANY_BIT, CLONE_NEWUSER, 0, 1),
        _instruction(_RETURN, refuse),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(instructions)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One `struct sock_filter`; the last two are numbers of instructions to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
