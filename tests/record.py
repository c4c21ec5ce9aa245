"""docs/reliability.md: tables of what was tried and what happened, written by the tests that tried it.

A test says `tried(section, what, happened)`; what it says replaces the row of that name when the tests end. Rows of
tests that were not run (long ones, or those that need what is not there) stay as they are.
"""

import fcntl
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
HEAD = """# What was tried, and what happened

The tests write this page: each row is what a test did and saw. `make test` runs most of them; `pytest -m long` runs
the long ones (sixteen more kills, 100,000 random inputs). Where a row quotes a message, it is the message, `...` for
a folder.
"""
SECTIONS = {
    "Killed and gone on with": """A run with two losses, dropout, augmentation, early stopping and a plateau is killed
(SIGKILL) at random moments, one to three times, and the same command is given again. Compared with the unbroken run:
weights, optimiser, scheduler, counters and best scores in all checkpoints, every epoch's numbers, the epoch of early
stopping, what was chosen, every image's scores, every mask. In brackets: before which call of its kind.""",
    "Asked to end": """The same command goes on, if it names the folder (`hydra.run.dir=`, `sweep=`) or SLURM starts it
again; `resume=<folder>` does always. [What the exit codes say](reference.md#exit-codes-of-training).""",
    "Numbers that go wrong": "Losses and gradients that are no numbers, and predictions that collapse.",
    "Faults of the machine": "Nothing that was finished before is lost in any of them.",
    "Hostile input": "Archives, images, checkpoints, configs and tables that someone else has made.",
    "Random input": """Random and randomly damaged input. Anything but the expected answer or a clear error is a
failure.""",
    "The same again": "On the CPU, with one thread or the same number of threads.",
}


class Record:
    """The rows of the page.

    Args:
        page: The file.
    """

    def __init__(self, page: Path = PAGE):
        self.page, self.new = page, {section: {} for section in SECTIONS}

    def __call__(self, section: str, what: str, happened: str) -> None:
        """Note a row."""
        what, happened = (re.sub(r"\s+", " ", text.replace("|", "/")).strip() for text in (what, happened))
        self.new[section][what] = happened

    def write(self) -> None:
        """Write the page anew, with the rows that are new; one after the other, if several processes test."""
        if not any(self.new.values()):
            return
        with self.page.open("a") as page:
            fcntl.flock(page, fcntl.LOCK_EX)
            self._write()

    def _write(self) -> None:
        parts, before = [HEAD], self._before()
        for section, words in SECTIONS.items():
            rows = sorted((before[section] | self.new[section]).items())
            table = "\n".join(f"| {what} | {happened} |" for what, happened in rows)
            parts.append(f"## {section}\n\n{words}\n\n| tried | what happened |\n|---|---|\n{table}\n")
        self.page.write_text("\n".join(parts))

    def _before(self) -> dict[str, dict[str, str]]:
        rows, section = {section: {} for section in SECTIONS}, None
        for line in self.page.read_text().splitlines() if self.page.is_file() else ():
            if line.startswith("## "):
                section = line[3:]
            elif section in rows and (found := re.match(r"\| (.*?) \| (.*) \|$", line)) and found[1] != "tried":
                rows[section][found[1]] = found[2]
        return rows


def plain(text: str, *folders: Path) -> str:
    """A message as the page shows it: without folders and numbers of processes, one line."""
    for folder in folders:
        text = text.replace(str(folder), "...")
    text = re.sub(r"\.\.\.[\w/.-]*/", ".../", text)
    return re.sub(r"\s+", " ", text).strip()
