"""Jobs of a sweep: finished ones are skipped, interrupted ones go on, failed ones wait until they are asked for.

Whatever launches the jobs, each decides by what its own folder holds; so a sweep that was killed goes on when the same
command is given again. A single run does likewise, if its folder is named (hydra.run.dir=<folder>). Imports nothing
heavy: a finished job is skipped in no time.

Who goes on with what, and where that is decided (training then takes the last checkpoint):

- the same sweep again: each job by :func:`run`, which asks :func:`decide`;
- the same command with hydra.run.dir=<folder>: :func:`goes_on`, which asks it, too;
- resume=<folder>: :func:`raremask.commandline.run_folder` looks at the folder, and `training` at what may change;
- SLURM queues a job again: :func:`raremask.commandline.queued_again` finds its folder, then :func:`goes_on`.
"""

import math
import os
import platform
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from raremask import BadInput, Fault
from raremask.commandline import check, program
from raremask.runfolder import (
    SIGN,
    STATUS,
    alive,
    begun,
    first_line,
    read_status,
    reason_of,
    write_table,
    write_text,
)
from raremask.settings import NO_OTHER_RUN, flat

LEDGER = "ledger.csv"
REFUSED = ".refused"  # ends the name of a file beside the folders of jobs: why one of them could not begin
ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))  # Windows has but one
KILLED = ("TerminatedWorkerError", "UncompletedJobError")  # of joblib and of submitit, if a job vanishes
#: What a run leaves that has not ended an epoch; whatever else lies in its folder is someone's.
LEFT = (STATUS, "split.csv", "auto.json", "receipt.json", "leaks.csv", "stopped.json", "metrics.csv")
LEFT_BELOW = ("figures/leaks.png", "tensorboard/events.out.tfevents.*")


def is_job() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def run(cfg: DictConfig, train: Callable[[DictConfig, bool], float]) -> float:
    """Do what is left to do of a job.

    Args:
        cfg: The job's config.
        train: Trains; called with the config, and whether to go on from the last checkpoint.

    Returns:
        The best monitored score of the run.

    Raises:
        BadInput: If the folder holds a run of another config.
    """
    folder = Path(cfg.folder)
    refused = folder.with_name(f"{folder.name}{REFUSED}")
    try:
        refused.unlink(missing_ok=True)
        what, why = decide(cfg, folder)
        if what == "skip":
            print(f"{folder.name}: {why}")
            return read_status(folder).get("best", math.nan)
        if why:
            print(f"{folder.name}: {why}", flush=True)
        if what == "anew":
            _clear(folder)
        check(cfg)
        return train(cfg, what == "resume")
    except Exception as error:
        if not isinstance(error, BadInput | Fault):
            traceback.print_exc()
        print(f"\n{folder.name} failed: {error}\n", file=sys.stderr, flush=True)  # now, not after the last job
        with suppress(OSError):
            if not read_status(folder):
                write_text(refused, f"{reason_of(error)}\n")
        error.shown = True  # type: ignore[attr-defined]  # a mark, whatever kind of error it is
        raise
    finally:
        with suppress(OSError):  # a job is not lost because its neighbour wrote the table at the same moment
            write_ledger(folder.parent)


def goes_on(cfg: DictConfig) -> bool:
    """Say whether a single run goes on with what its folder holds from a command that was interrupted.

    Raises:
        BadInput: If the folder holds a run that is not to be gone on with.
    """
    folder = Path(cfg.folder)
    if any(int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):  # the first one decides
        return begun(folder)
    what, why = decide(cfg, folder)
    if what == "skip":
        raise BadInput(f"{folder} already holds a run: {why}. Give this one a folder of its own.")
    if why:
        print(f"{folder}: {why}", flush=True)
    if what == "anew":
        _clear(folder)
    return what == "resume"


def decide(cfg: DictConfig, folder: Path) -> tuple[str, str]:
    """Say what is to be done with a job, `start`, `anew`, `resume` or `skip`, and why.

    Raises:
        BadInput: If the folder holds a run of another config.
    """
    facts = read_status(folder)
    if not facts:
        return "start", ""  # Hydra has written this job's config over that of a start that came to nothing
    if changed := differences(OmegaConf.load(folder / ".hydra" / "config.yaml"), cfg):
        more = [f"and {len(changed) - 8} more"] if len(changed) > 8 else []
        listed = "\n  ".join([*changed[:8], *more])
        raise BadInput(
            f"{folder} holds a run of another config:\n  {listed}\nName another folder or sweep=, or delete it."
        )
    if facts["state"] == "done":
        return "skip", "done already"
    if facts["state"] == "running" and alive(folder):
        return "skip", f"is being trained by process {facts['process']} on {facts['host']}{_or_was(folder, facts)}"
    if facts["state"] == "failed" and not cfg.retry:
        return "skip", f"has failed before ({first_line(facts['reason'])}); retry=true tries again"
    if begun(folder):
        return "resume", "goes on from its last checkpoint"
    return "anew", "starts anew: no epoch had ended"


def _or_was(folder: Path, facts: dict[str, Any]) -> str:
    """What is to be known of a run on another machine, of which only the last sign is seen."""
    if facts["host"] == platform.node():
        return ""
    return f"; if it was killed there, go on with {program('train')} resume={os.path.relpath(folder)}"


def differences(saved: DictConfig, cfg: DictConfig) -> list[str]:
    """Return the settings in which two configs differ, a line each."""
    before, now = flat(OmegaConf.to_container(saved)), flat(OmegaConf.to_container(cfg))
    return [
        f"{key}: {before.get(key, 'nothing')} there, {now.get(key, 'nothing')} asked for"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, "") != now.get(key, "")
        and key not in NO_OTHER_RUN
        and str(before.get(key, "")) != str(now.get(key, ""))  # a folder may be called 2018
    ]


def _clear(folder: Path) -> None:
    """Take away what a run has left that had not ended an epoch."""
    for pattern in LEFT + LEFT_BELOW:
        for path in folder.glob(pattern):
            path.unlink()


def write_ledger(sweep: Path) -> list[dict[str, Any]]:
    """Write the states of all jobs of a sweep, and return them: a row for each."""
    rows = []
    for file in sorted(sweep.glob(f"*/{STATUS}")):
        facts = read_status(file.parent)
        if not facts:
            continue  # taken away just now
        keys = ("state", "best", "epochs", "seconds", "started", "ended", "reason", "collapsed")
        rows.append({"job": file.parent.name} | {key: facts[key] for key in keys if key in facts})
        if "reason" in facts:
            rows[-1]["reason"] = first_line(facts["reason"])
        if facts["state"] == "running" and not alive(file.parent):
            rows[-1]["state"] = "interrupted"
    for file in sorted(sweep.glob(f"*{REFUSED}")):
        with suppress(FileNotFoundError):  # the job begins just now
            why = first_line(file.read_text(encoding="utf-8"))
            job = file.name.removesuffix(REFUSED)
            if job not in {row["job"] for row in rows}:  # or another command trains it
                rows.append({"job": job, "state": "refused", "reason": why})
    if rows:
        write_table(sweep / LEDGER, rows)
    return rows


class Sweep(Callback):
    """Remembers where the sweep of this process is, so that its end can be told; named in conf/train.yaml."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **more: Any) -> None:
        """Remember; and where joblib's processes train, end with them if the system asks: nobody else hears it here."""
        Sweep.folder, launcher = Path(config.hydra.sweep.dir), config.hydra.launcher
        if launcher._target_.endswith(".JoblibLauncher") and launcher.n_jobs != 1:  # which is this process
            for one in ENDS:
                signal.signal(one, _end)


def _end(*_: object) -> None:
    """Exit; joblib then ends its processes, and another signal must not break that off."""
    for one in ENDS:
        signal.signal(one, signal.SIG_IGN)
    sys.exit(75)


@contextmanager
def told() -> Iterator[None]:
    """Print the states of a sweep's jobs when it ends; exit with 1 if one has failed, with 75 if one still runs."""
    failed = False
    try:
        yield
    except Exception as error:
        if Sweep.folder is not None and type(error).__name__ in KILLED:
            why = f"A job was killed from outside, such as for want of memory ({type(error).__name__})."
            print(f"\n{why} {_goes_on(Sweep.folder)}", file=sys.stderr)
        elif Sweep.folder is None or not getattr(error, "shown", False):
            raise
        failed = True  # said when it happened
    except (KeyboardInterrupt, SystemExit):
        if Sweep.folder is not None:
            print(f"\nInterrupted. {_goes_on(Sweep.folder)}", file=sys.stderr)
            with suppress(OSError):
                write_ledger(Sweep.folder)
        raise
    if Sweep.folder is None:
        return
    rows = write_ledger(Sweep.folder)
    states = Counter(row["state"] for row in rows)
    print("\n" + ledger_text(rows))
    print(f"\n{', '.join(f'{count} {state}' for state, count in sorted(states.items()))}; {Sweep.folder / LEDGER}")
    if states["done"] > 1:
        print(
            "best: the monitored score on validation, at threshold 0.5, computed again after training, in float32; it "
            "does not say which is best on test."
        )
        print(f"Compare them: {program('compare')} runs={Sweep.folder}")
    if failed or states["failed"]:
        sys.exit(1)
    if states["running"]:
        print(
            "What still runs was left to another process. If that has died on another machine, it shows within "
            f"{SIGN // 60} minutes. {_goes_on(Sweep.folder)}"
        )
        sys.exit(75)


def _goes_on(sweep: Path) -> str:
    return f"The same command with sweep={sweep.name} goes on."


def ledger_text(rows: list[dict[str, Any]]) -> str:
    """Format the states of jobs for a terminal.

    >>> rows = [{"job": "a", "state": "done", "best": 0.5, "seconds": 3.2}, {"job": "bc", "state": "failed"}]
    >>> print(ledger_text(rows))
    a   done     best 0.5000        3 s
    bc  failed
    """
    width = max((len(row["job"]) for row in rows), default=0)
    lines = []
    for row in rows:
        best = f"best {row['best']:.4f}" if "best" in row else ""
        seconds = f"{row['seconds']:>8.0f} s" if "seconds" in row else ""
        why = row.get("reason") or row.get("collapsed", "")
        lines.append(f"{row['job']:<{width}}  {row['state']:<8} {best:<12}{seconds}  {why}".rstrip())
    return "\n".join(lines)
