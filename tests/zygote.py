"""Trains in processes that start in no time and can be killed at a chosen moment; a script, run by test_killing.py.

Imports everything once and forks for each order, a line of JSON on its input: `arguments` of train.py, `log`, a file
for what is printed, an `environment`, and perhaps `kill`: a `signal` `after` so many seconds, or an `action` of ACTIONS
before the n-th `call` of a `function`. For each it prints a line of JSON: the exit code (negative: the signal), and how
often each of FUNCTIONS was called.
"""

import importlib
import itertools
import json
import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import torch

import raremask.building
import raremask.training  # noqa: F401  # everything heavy, once

SCRIPT = Path(__file__).parents[1] / "src" / "train.py"
#: Where trainings are killed, and what that is.
FUNCTIONS = {
    "raremask.module:Segmenter.training_step": "inside a step",
    "torch.optim:AdamW.step": "before the weights change",
    "raremask.module:Segmenter.validation_step": "in validation",
    "raremask.callbacks:LossSwitch.on_train_epoch_start": "at the start of an epoch, the switch among them",
    "raremask.callbacks:History.on_train_epoch_end": "at the end of an epoch",
    "raremask.checkpoints:WholeFiles.save_checkpoint": "before a checkpoint is written",
    "os:fsync": "while a file is written, a checkpoint among them",
    "pathlib:Path.replace": "before a written file, a checkpoint among them, gets its name",
    "raremask.module:Viewer.predict_step": "while images are scored",
    "raremask.training:write_split": "between two tables",
    "raremask.data.base:ImageMaskData.arrays": "while images are read",
}


def kill_all(kill: dict) -> None:
    """Send the signal to this process and its workers, from outside, as a shell or SLURM does."""
    code = f"import os; os.killpg({os.getpgid(0)}, {kill['signal']})"  # not every system has the program `kill`
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, start_new_session=True)
    time.sleep(0.5)


def kill_worker(kill: dict) -> None:
    """Kill a worker of the loader, as the system does when memory is short."""
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    time.sleep(1)


def run_out_of_memory(kill: dict) -> None:
    """Fail as PyTorch does on a GPU whose memory is used up."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def set_clock_back(kill: dict) -> None:
    """Let it be an hour earlier from now on."""
    now = time.time
    time.time = lambda: now() - 3600


ACTIONS = {
    "kill": lambda kill: os.kill(os.getpid(), kill["signal"]),
    "kill all": kill_all,
    "kill worker": kill_worker,
    "out of memory": run_out_of_memory,
    "clock": set_clock_back,
    "vanish": lambda kill: Path(kill["path"]).rename(kill["path"] + "_gone"),
}


def watch(counts: Path, kill: dict | None) -> None:
    """Count the calls of all functions, and die at one of them."""
    for name in FUNCTIONS:
        path, _, function = name.partition(":")
        owner = importlib.import_module(path)
        *inside, function = function.split(".")
        for part in inside:
            owner = getattr(owner, part)
        setattr(owner, function, watched(getattr(owner, function), name, counts, kill or {}))
    if kill and "after" in kill:
        threading.Timer(kill["after"], os.kill, (os.getpid(), kill["signal"])).start()


def watched(function, name: str, counts: Path, kill: dict):
    """Return the function, counting and killing."""
    numbers = itertools.count(1)  # threads call, too

    def call(*arguments, **more):
        called = next(numbers)
        with counts.open("a") as file:
            file.write(f"{name}\n")
        if (name, called) == (kill.get("function"), kill.get("call")):
            ACTIONS[kill.get("action", "kill")](kill)
        return function(*arguments, **more)

    return call


def child(order: dict, counts: Path) -> int:
    """Train, and return the exit code."""
    os.setpgid(0, 0)
    os.environ.update(order["environment"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # as a shell starts a command
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    watch(counts, order.get("kill"))
    sys.argv = [str(SCRIPT), *order["arguments"]]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Do what is ordered until there is nothing more."""
    for line in sys.stdin:
        order = json.loads(line)
        counts = Path(order["log"]).with_suffix(".counts")
        counts.write_text("")
        number = os.fork()
        if number == 0:
            signal.alarm(300)  # ends what would never end
            code = child(order, counts)
            sys.stdout.flush()
            multiprocessing.util._exit_function()  # as a process of its own would wait for the workers that it has left
            os._exit(code)
        _, status = os.waitpid(number, 0)
        called = counts.read_text().splitlines()
        print(
            json.dumps([os.waitstatus_to_exitcode(status), {name: called.count(name) for name in FUNCTIONS}]),
            flush=True,
        )


if __name__ == "__main__":
    main()
