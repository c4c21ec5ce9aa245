"""raremask: which loss works when the foreground is rare, by how much, and how sure can I be?

Importing the package costs nothing: the heavy libraries are imported by the rooms that need them.
"""

from collections.abc import Sequence

__version__ = "0.1.0"


class BadInput(ValueError):
    """Something the user can mend: a value, a file, a folder.

    The message names the value, the rule and the way out. The entry points print it without a traceback.
    """


class Fault(RuntimeError):
    """Something of the machine that failed: memory, disk, a process. The entry points print it without a traceback."""


def some(names: Sequence[str], most: int = 5) -> str:
    """List names in a message, the first ones if they are many.

    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
