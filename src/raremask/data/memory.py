"""Keeps arrays, such as decoded pictures: in memory, and past a limit in a temporary file."""

import os
import tempfile
from threading import Lock

import numpy as np

from raremask import BadInput

BLOCK = 2**28  # bytes of the file that are reserved and mapped at a time; a map for each array would be too many


class Shelf:
    """Arrays in memory up to a limit, and beyond it in a temporary file, which the system reads and forgets as needed.

    Processes that are forked share either. The file has no name and is gone with the process; it lies where the system
    keeps temporary files (TMPDIR).

    Args:
        limit: Bytes that stay in memory, 0 or more.
        what: What is kept, for the message when the disk is full.
        remedy: What to do then, a sentence.

    Raises:
        ValueError: If the limit is negative.

    >>> Shelf(limit=0).keep(np.arange(3, dtype=np.uint8)).tolist()
    [0, 1, 2]
    """

    def __init__(self, limit: int, what: str = "arrays", remedy: str = "Set TMPDIR to a larger disk."):
        if limit < 0:
            raise ValueError(f"memory must be 0 GiB or more; got {limit / 2**30:g}")
        self.limit, self.what, self.remedy = limit, what, remedy
        self.in_memory, self.on_disk = 0, 0
        self._lock, self._block, self._used = Lock(), np.empty(0, np.uint8), 0

    def keep(self, array: np.ndarray) -> np.ndarray:
        """Return the array, or its copy in the file, which cannot be told from it.

        Raises:
            BadInput: If there is no room for the file.
        """
        with self._lock:
            if self.in_memory + array.nbytes <= self.limit:
                self.in_memory += array.nbytes
                return array
            if self._used + array.nbytes > self._block.size:
                self._block, self._used = self._mapped(max(BLOCK, array.nbytes)), 0
            start, self._used = self._used, self._used + array.nbytes
            self.on_disk += array.nbytes
            copy = self._block[start : self._used].view(np.ndarray).view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    def _mapped(self, size: int) -> np.memmap:
        with tempfile.TemporaryFile() as file:
            try:
                if hasattr(os, "posix_fallocate"):  # or a full disk would be a bus error, much later
                    os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, np.uint8, "r+" if os.fstat(file.fileno()).st_size else "w+", shape=(size,))
            except OSError as error:
                raise BadInput(
                    f"{tempfile.gettempdir()} has no room for {size / 2**20:.0f} MiB of {self.what} ({error}). "
                    f"{self.remedy}"
                ) from error
