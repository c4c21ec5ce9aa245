import errno
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raremask import runfolder
from raremask.runfolder import alive, read_status, status, write_bytes, write_table, write_text
from raremask.tables import read_table


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    write_text(path, "old")

    def full_disk(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr("raremask.runfolder.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new and longer")
    assert path.read_text() == "old"


def test_a_table_comes_back_as_it_was_written_with_gaps_left_out(tmp_path):
    rows = [{"epoch": 0, "loss": 0.1}, {"epoch": 1, "loss": 1e-7, "image": 'a,"b"'}, {"image": "001", "group": "inf"}]
    write_table(tmp_path / "t.csv", rows)
    assert read_table(tmp_path / "t.csv") == rows


def state(folder):
    return json.loads((folder / "status.json").read_text())


def test_the_run_lengths_of_a_large_mask_fit_into_a_cell(tmp_path):
    rows = [{"image": "a", "runs": "1 2 " * 100_000}]  # Python's limit is 131,072 characters
    runfolder.write_table(tmp_path / "t.csv", rows)
    assert read_table(tmp_path / "t.csv") == rows


def test_the_status_tells_how_a_run_goes_and_ended(tmp_path):
    with status(tmp_path, loss="dice"):
        assert state(tmp_path)["state"] == "running"
        assert state(tmp_path)["loss"] == "dice"
    assert state(tmp_path)["state"] == "done"
    assert state(tmp_path)["ended"] >= state(tmp_path)["started"]


def test_a_run_that_breaks_off_leaves_its_reason(tmp_path):
    with pytest.raises(ValueError, match="no"), status(tmp_path):
        raise ValueError("no")
    assert (state(tmp_path)["state"], state(tmp_path)["reason"]) == ("failed", "ValueError: no")
    for error in (KeyboardInterrupt(), SystemExit(1)):
        with pytest.raises(type(error)), status(tmp_path):
            raise error
        assert state(tmp_path)["state"] == "interrupted"


def test_what_a_run_gives_stands_in_its_status(tmp_path):
    with status(tmp_path) as results:
        results["best"] = 0.5
    assert read_status(tmp_path)["best"] == 0.5
    assert read_status(tmp_path)["seconds"] >= 0
    assert read_status(tmp_path / "elsewhere") == {}


def test_a_process_is_known_by_more_than_its_number(tmp_path, monkeypatch):
    def change(**facts):
        (tmp_path / "status.json").write_text(json.dumps(read_status(tmp_path) | facts))

    with status(tmp_path):
        assert alive(tmp_path)
        running = read_status(tmp_path)
    change(**(running | {"process_began": 1}))
    if Path("/proc/self").exists():
        assert not alive(tmp_path)  # the number was used again
    other = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    change(**(running | {"process": int(other.stdout)}))
    assert not alive(tmp_path)
    change(host="another")
    assert alive(tmp_path)  # there was a sign of it just now
    long_ago = time.time() - 3600
    os.utime(tmp_path / "status.json", (long_ago, long_ago))
    assert not alive(tmp_path)
    change(slurm="7_1")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert not alive(tmp_path)  # this very job, queued again


def test_many_may_write_one_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_text(tmp_path / "ledger.csv", f"{number}\n" * 1000), range(200)))
    assert len(set((tmp_path / "ledger.csv").read_text().split())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.csv"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_that_knows_no_locks_is_said_and_used(tmp_path, monkeypatch, number):
    def lockf(*arguments):
        raise OSError(number, "no locks")

    monkeypatch.setattr(runfolder.fcntl, "lockf", lockf)
    with pytest.warns(UserWarning, match="cannot be locked"), runfolder.claimed(tmp_path / "run"):
        pass


def test_what_is_half_written_is_hidden(tmp_path, monkeypatch):
    """Or a killed prediction would leave a picture among its masks."""
    seen = []
    monkeypatch.setattr("os.fdopen", lambda *_: seen.extend(tmp_path.iterdir()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_bytes(tmp_path / "1.png", b"")
    assert [(path.name[:7], path.suffix) for path in seen] == [(".1.png.", ".part")]
    assert not list(tmp_path.iterdir())
