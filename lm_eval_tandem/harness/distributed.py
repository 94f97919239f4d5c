"""Several processes of one run (`accelerate launch`, `torchrun`): each answers its share of the questions."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lm_eval_tandem.errors import EngineError

TIMEOUT = timedelta(days=1)
"""Longest wait for the other processes: one of them may have all the long answers, but after a day it is dead."""


class Ranks:
    """The rank of this process in the run, and what the ranks exchange.

    The harness distributes the documents over the ranks and gathers their scores at rank 0; this class gathers records
    and counts. An error of one rank ends all of them (`failing_together`), so that none waits for one that has gone. A
    single process loads nothing for it.
    """

    def __init__(self) -> None:
        self.state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch

            # Its functions take the group for a default argument: one that exists when they are imported is never let
            # go of, and destroy_process_group then ends no thread.
            import torch.distributed.nn.functional
            from accelerate import PartialState

            self.state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
            atexit.register(end_process_group)
        self.rank: int = 0 if self.state is None else self.state.process_index
        self.world_size: int = 1 if self.state is None else self.state.num_processes

    @property
    def device(self) -> Any:
        """The device of tensors that the processes exchange; None for a single process."""
        return None if self.state is None else self.state.device

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Wait at the end of the block for all processes; if the block failed in one of them, it fails in all.

        Every process has to enter it. An interrupt (Ctrl-C) is not shared: it reaches every process by itself.

        Raises
        ------
        EngineError
            The block failed in another process; this one's own error is raised as it is.
        """
        try:
            yield
        except Exception as error:
            self.exchange(" ".join(str(error).split()) or type(error).__name__)
            raise
        for rank, reason in enumerate(self.exchange(None)):
            if reason is not None:
                raise EngineError(f"process {rank} of this run failed, and so all end: {reason}")

    def exchange(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, at every process."""
        if self.world_size == 1:
            return [value]
        import torch

        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, value)
        return found

    def all_gather(self, tensor: Any) -> Any:
        """The tensors of all processes, one after the other."""
        if self.world_size == 1:
            return tensor
        from accelerate.utils import gather

        return gather(tensor)

    def gather_object(self, value: Any, dst: int = 0) -> list[Any] | None:
        """The values of all processes at rank `dst`, by rank; None elsewhere."""
        if self.world_size == 1:
            return [value]
        import torch

        found: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(value, found, dst=dst)
        return found

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.state is not None:
            self.state.wait_for_everyone()


def end_process_group() -> None:
    """End the connections of the processes; a process that exits without it may abort (exit code 134)."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
