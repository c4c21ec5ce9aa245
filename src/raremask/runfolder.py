"""The folder of a run: its state, who trains into it, and files that are written whole or not at all."""

import io
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raremask import BadInput, Fault, tables

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # mypy knows no module that may be missing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATUS = "status.json"
LAST, PREVIOUS = Path("checkpoints/last.ckpt"), Path("checkpoints/previous.ckpt")
LOCK = ".hydra/lock"  # in a run's folder, empty; the system knows who holds it
NOTED = ("collapsed",)  # facts of :func:`note`
UMASK = os.umask(0)  # what new files may not: it can only be asked for by setting it, so once, before there are threads
os.umask(UMASK)
SIGN = 1800  # seconds within which a run on another machine must have shown that it goes on


def write_bytes(path: Path, content: bytes | memoryview, sync: bool = True) -> None:
    """Write a file through a temporary, hidden one, so that a reader never sees half of it.

    Args:
        path: Where; its folder is made.
        content: What.
        sync: Whether to wait until the disk has it, some milliseconds: for what could not be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(".part", f".{path.name}.", path.parent)  # one for each that writes at the same time
    partial = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.chmod(0o666 & ~UMASK)  # mkstemp lets nobody else read
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, in the same way; line ends stay as they are."""
    write_bytes(path, text.encode())


def write_figure(path: Path, figure: "Figure", dpi: int) -> None:
    """Write a figure of matplotlib as PNG in the same way, at so many dots per inch."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    write_bytes(path, content.getvalue())


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV, see :func:`raremask.tables.text`."""
    write_text(path, tables.text(rows))


def reason_of(error: BaseException) -> str:
    """Return why a run failed, as it is noted: a message of ours as it is, another's with the name of its kind."""
    return str(error) if isinstance(error, BadInput | Fault) else f"{type(error).__name__}: {error}"


def first_line(reason: object) -> str:
    """Return as much of a reason as a table has room for; the folder may be someone's, and anything its reason."""
    return (str(reason or "").splitlines() or [""])[0]


def standing(folder: Path) -> str:
    """Say of a run that is not done how it stands: `failed` or `not ended`."""
    return "failed" if read_status(folder).get("state") == "failed" else "not ended"


@contextmanager
def status(folder: Path, earlier: float = 0.0, **facts: object) -> Iterator[dict[str, object]]:
    """Keep `status.json` while a run goes on: running, then done, interrupted, or failed with the reason.

    Args:
        folder: The run's folder.
        earlier: Seconds that the epochs of earlier parts of this run took.
        **facts: Written along: which dataset, model, loss, seed.

    Yields:
        What is put into it is written along when the run ends.
    """
    started, clock = _now(), time.monotonic()
    _forget_peak()

    results: dict[str, object] = {}

    def write(state: str, **more: object) -> None:
        noted = {key: value for key, value in read_status(folder).items() if key in NOTED}
        record = {"state": state, **facts, "started": started, **more, **results, **noted}
        write_text(folder / STATUS, json.dumps(record, indent=2) + "\n")

    here = {
        "host": platform.node(),
        "process": os.getpid(),
        "process_began": _began(os.getpid()),
        "slurm": slurm_job(),
        "arguments": sys.argv[1:],
    }
    write("running", **here)
    try:
        yield results
    except (KeyboardInterrupt, SystemExit):
        with suppress(OSError):  # a disk that is full; a running status without a process means the same
            write("interrupted", ended=_now(), **here)
        raise
    except BaseException as error:
        with suppress(OSError):
            write("failed", ended=_now(), reason=reason_of(error))
        raise
    seconds = round(earlier + time.monotonic() - clock, 1)
    write("done", ended=_now(), seconds=seconds, memory_gib=_peak())


def note(folder: Path, **facts: object) -> None:
    """Add facts to the status of a run that goes on; they stay when it ends. None takes one away."""
    record = {key: value for key, value in (read_status(folder) | facts).items() if value is not None}
    write_text(folder / STATUS, json.dumps(record, indent=2) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """Return what `status.json` says, or nothing if there is none; of a damaged one that it is."""
    try:
        facts = json.loads((folder / STATUS).read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        facts = None
    return facts if isinstance(facts, dict) and "state" in facts else {"state": "damaged"}


def begun(folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint to go on from: an epoch has ended."""
    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from training into a folder; when this one ends, however it does, the claim ends.

    Raises:
        BadInput: If another process has claimed it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOCK).parent.mkdir(exist_ok=True)
    with (folder / LOCK).open("a") as file:
        try:
            if fcntl is None:
                raise OSError("this system has none")
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: workers do not inherit it
        except (BlockingIOError, PermissionError) as error:
            raise BadInput(
                f"Another process is training or searching in {folder} at this moment; wait for its end."
            ) from error
        except OSError as error:  # some disks of clusters
            warnings.warn(f"{folder} cannot be locked ({error}): do not start a second run there.", stacklevel=3)
        yield


def alive(folder: Path) -> bool:
    """Whether the process that wrote the status of a running run is still there.

    Of another machine it is believed if there was a sign of it within half an hour (an epoch had ended), unless this is
    the same job of SLURM, queued again.
    """
    facts = read_status(folder)
    if facts.get("host") != platform.node():
        if facts.get("slurm") is not None and facts["slurm"] == slurm_job():
            return False
        signs = [path.stat().st_mtime for path in (folder / STATUS, folder / "metrics.csv") if path.is_file()]
        return time.time() - max(signs, default=0) < SIGN
    began = _began(facts["process"])
    if began is None:  # not Linux, or no such process
        return not Path("/proc/self").exists() and _exists(facts["process"])
    return began == facts.get("process_began")


def slurm_job() -> str | None:
    """Return the number of the job of SLURM in which this process runs, `12` or `12_3`, or None."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _began(process: int) -> int | None:
    """When a process began, in ticks since the machine did: numbers of processes are used again. None if unknown."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except OSError:
        return None


def _exists(process: int) -> bool:
    if os.name == "nt":  # where this signal is no question but Ctrl-C
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _forget_peak() -> None:
    """Let the peak of this process's memory start anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float | None:
    """The largest memory of this process since then, in GiB, or None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("VmHWM:")]
    return round(int(found[0].split()[1]) / 2**20, 2) if found else None


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
