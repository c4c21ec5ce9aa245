"""Ends a training in order when the system asks for it, so that the same command can go on.

Exit codes of train.py: 0 done; 1 something failed, and the reason is printed; 2 something to mend in the
command or the data; 75 (try again) the system ended it, or a job of a sweep is left to another process; 130 the user
did.

SLURM sends SIGTERM before it preempts or cancels a job, and the signal of `#SBATCH --signal=USR1@120` before its time
is up. After SIGUSR1 the job is queued again by this room; after SIGTERM SLURM itself does that, if the job was
preempted and may be queued again, and not if it was cancelled.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from raremask.runfolder import slurm_job

CODES = {
    getattr(signal, name): code
    for name, code in {"SIGINT": 130, "SIGTERM": 75, "SIGUSR1": 75}.items()
    if hasattr(signal, name)  # Windows has no SIGUSR1
}
DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class Interrupted(SystemExit):
    """The system or the user asked for the end; exits with the code of the signal.

    Args:
        asked: The signal.
    """

    def __init__(self, asked: signal.Signals):
        super().__init__(CODES[asked])
        self.asked = asked

    def __reduce__(self) -> tuple:
        """Go on to another process as what it is: joblib carries what a job raises."""
        return type(self), (self.asked,)


class Interruption(Callback):
    """Hears signals, and ends a training after its current step; outside of training at once.

    What was computed since the last epoch ended is computed again by the run that goes on, which then is the same as if
    it had never stopped. A second signal does not wait for the step. Signals that another program has taken over (as
    submitit does, which queues jobs again by itself) stay with it.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.waiting = False  # whether a step comes to an end soon
        self.process = os.getpid()
        self.heard: tuple[signal.Signals, ...] = ()

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Hear signals while this lasts."""
        if threading.current_thread() is not threading.main_thread():  # of a program that trains in another thread
            yield
            return
        before = {one: signal.getsignal(one) for one in CODES}
        self.heard = tuple(one for one, handler in before.items() if handler in DEFAULTS)
        self._hear()
        try:
            yield
        finally:
            for one in self.heard:
                signal.signal(one, before[one])
            if self.asked and self.asked.name == "SIGUSR1" and slurm_job() and rank_zero_only.rank == 0:
                queue_again()

    @contextmanager
    def converting(self) -> Iterator[None]:
        """Take an error that follows a signal for what it is: a process got it too, and its end looks like a fault."""
        try:
            yield
        except Exception as error:
            if self.asked is None:
                raise
            raise Interrupted(self.asked) from error

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Hear again: Lightning has put a handler of its own in place, which talks to other processes."""
        self.waiting = True
        self._hear()

    def on_train_batch_end(self, trainer: Trainer, *more: Any) -> None:
        """End here, if that was asked for."""
        self._end(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *more: Any) -> None:
        """End here, if that was asked for."""
        self._end(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Wait no longer: what follows can be broken off anywhere."""
        self.waiting = False
        self._end(trainer)

    def _hear(self) -> None:
        for one in self.heard:
            signal.signal(one, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker of the loader has inherited this; it ends when the loader does
            return
        first, self.asked = self.asked is None, signal.Signals(number)
        if not (self.waiting and first):
            raise Interrupted(self.asked)

    def _end(self, trainer: Trainer) -> None:
        if self.asked is None:
            return
        launcher = trainer.strategy.launcher
        if launcher is not None:  # the other processes of this machine wait for this one, and hold no files
            launcher.kill(signal.SIGKILL)
        raise Interrupted(self.asked)


def queue_again() -> None:
    """Queue this job of SLURM again; the same command then goes on with the run."""
    job = slurm_job()
    program = shutil.which("scontrol")
    done = job and program and subprocess.run([program, "requeue", job], check=False, capture_output=True, text=True)
    if done and done.returncode == 0:
        print(f"SLURM will run job {job} again.", flush=True)
    else:
        why = done.stderr.strip() if done else "there is no scontrol here"
        print(f"Job {job} was not queued again: {why}", file=sys.stderr, flush=True)
