"""Faults of the machine, said in words: memory, disk, workers."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from raremask import Fault

DISK = {
    errno.ENOSPC: "the disk is full. Make room; what was written before is whole",
    getattr(errno, "EDQUOT", errno.ENOSPC): "the quota of the disk is used up. Make room; what was written is whole",
    errno.EROFS: "the disk can only be read. Name a folder that can be written",
    errno.EACCES: "writing or reading is not permitted. Name another folder",
    errno.EPERM: "writing or reading is not permitted. Name another folder",
    errno.EIO: "the disk has failed. What was written before may be whole; look at its health",
    errno.ESTALE: "the network's disk has gone away",
    errno.EMFILE: "too many files are open. Raise the limit (ulimit -n), or use fewer dataset.workers",
}


def named(error: BaseException, batch_size: int | None = None) -> str | None:
    """Say what has failed and what to do, or None if it is no fault of the machine.

    Args:
        error: What was raised.
        batch_size: Of the training in which it was, to propose another.

    >>> named(OSError(errno.ENOSPC, "No space left on device", "last.ckpt"))
    'last.ckpt: the disk is full. Make room; what was written before is whole. (No space left on device)'
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno in DISK:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{DISK[error.errno]}. ({error.strerror})"
    if "out of memory" in text.lower() and isinstance(error, RuntimeError):
        return f"The GPU ran out of memory{_smaller(batch_size)} ({text.splitlines()[0]})"
    if "</torch_" in text and "No space left" in text:
        return "The shared memory of the workers is full: docker run --shm-size=8g, or dataset.workers=0."
    if type(error).__name__ in ("DistNetworkError", "DistStoreError"):  # by name, for torch is not imported here
        return f"Another process of this training has ended, or cannot be reached; what it said itself is why. ({text})"
    if isinstance(error, MemoryError) or re.search(r"(can't|cannot) allocate memory", text, re.IGNORECASE):
        return (
            f"The memory of this machine is used up{_smaller(batch_size)} dataset.memory=<GiB> limits what images take."
        )
    if isinstance(error, RuntimeError) and re.search(
        r"DataLoader worker.*(killed by signal|exited unexpectedly)", text
    ):
        why = re.search(r"killed by signal: ([^.]*)", text)
        return (
            f"A worker of the loader has died ({why[1].strip() if why else 'without a word'}). If the system killed "
            "it, memory was short: use fewer dataset.workers (0 needs none), or a smaller batch. If it was a bus "
            "error, shared memory was: docker run --shm-size=8g, or dataset.workers=0."
        )
    return None


@contextmanager
def explained(batch_size: int | None = None) -> Iterator[None]:
    """Raise faults of the machine as what they are.

    Raises:
        Fault: With the words of :func:`named`.
    """
    try:
        yield
    except Exception as error:
        message = named(error, batch_size)
        if message is None:
            raise
        raise Fault(message) from error


def _smaller(batch_size: int | None) -> str:
    if batch_size is None:
        return "."
    if batch_size == 1:
        return " with dataset.batch_size=1. Try a smaller dataset.size, crops (augment=patches) or a smaller model."
    return (
        f" with dataset.batch_size={batch_size}. Try dataset.batch_size={batch_size // 2}, or a smaller dataset.size."
    )
