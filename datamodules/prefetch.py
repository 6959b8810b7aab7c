"""Batches made ahead of their use, on a thread and on a GPU's stream of their own."""

from collections.abc import Callable, Iterator
from functools import cache

import torch
from monai.data.thread_buffer import ThreadBuffer

__all__ = ["Batch", "ahead"]

Batch = dict[str, torch.Tensor]
_Item = tuple[Batch, "torch.cuda.Event | None"] | Exception


def ahead(make: Callable[[], Iterator[Batch]], device: torch.device, *, buffer: int) -> Iterator[Batch]:
    """What ``make`` yields, all of it run on a thread, at most ``buffer`` batches before they are asked for.

    What ``make`` raises is raised here (MONAI's buffer drops it, so it travels as an item). The thread ends with the iterator,
    used up or left.
    """
    for item in ThreadBuffer(_carried(make, device), buffer_size=buffer):
        if isinstance(item, Exception):
            raise item
        batch, ready = item
        if ready is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(ready)
            for tensor in batch.values():
                tensor.record_stream(stream)  # its memory is not free before this stream is done with it
        yield batch


def _carried(make: Callable[[], Iterator[Batch]], device: torch.device) -> Iterator[_Item]:
    try:
        if device.type == "cuda":  # for this thread, which ends with its work: nothing to set back
            torch.cuda.set_device(device)
            torch.cuda.set_stream(_stream(device))
        for batch in make():
            yield batch, torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
    except Exception as problem:
        yield problem


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all threads: what a stream has allocated, only that stream uses again."""
    return torch.cuda.Stream(device)
