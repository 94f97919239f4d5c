"""Several processes of one run (`accelerate launch`, `torchrun`): each answers its share of the questions."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any


class Ranks:
    """The rank of this process in the run, and what the ranks exchange.

    The harness distributes the documents over the ranks and gathers their scores at rank 0; this class gathers records
    and counts. A single process loads nothing for it.
    """

    def __init__(self) -> None:
        self.state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch
            from accelerate import PartialState

            # The harness itself waits this long: one rank may have all the long answers.
            self.state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(weeks=52))
        self.rank: int = 0 if self.state is None else self.state.process_index
        self.world_size: int = 1 if self.state is None else self.state.num_processes

    @property
    def device(self) -> Any:
        """The device of tensors that the processes exchange; None for a single process."""
        return None if self.state is None else self.state.device

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
