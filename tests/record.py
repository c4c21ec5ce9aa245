"""docs/reliability.md: tables of what was tried and what happened, written by the tests that tried it.

A test says `tried(section, what, happened)`; what it says replaces the row of that name when the tests end. Rows of
tests that were not run (long ones, or those that need what is not there) stay as they are.
"""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
HEAD = """# What was tried, and what happened

The tests write this page: each row is what a test did and saw. `make test` runs most of them; `pytest -m long` runs
the long ones (all twenty kills, 100,000 inputs). Where a row quotes a message, it is the message, `...` for a folder.
"""
SECTIONS = {
    "Killed and gone on with": """A run with two losses, dropout, augmentation, early stopping and a plateau is killed
(SIGKILL) at random moments, one to three times, and the same command is given again. Compared with the unbroken run:
weights, optimiser, scheduler, counters and best scores in all checkpoints, every epoch's numbers, the epoch of early
stopping, what was chosen, every image's scores, every mask. In brackets: before which call of its kind.""",
    "Asked to end": """Exit codes of all commands: 0 done; 1 something failed; 2 something to mend in the command or the
data; 75 the system ended it, and the same command goes on; 130 the user did, likewise. With `#SBATCH --requeue
--signal=USR1@120` a job of SLURM ends two minutes before its time is up, is queued again, and finds its run.""",
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
        self.page, self.rows, self.changed = page, {section: {} for section in SECTIONS}, False
        section = None
        for line in page.read_text().splitlines() if page.is_file() else ():
            if line.startswith("## "):
                section = line[3:]
            elif section in self.rows and (found := re.match(r"\| (.*?) \| (.*) \|$", line)) and found[1] != "tried":
                self.rows[section][found[1]] = found[2]

    def __call__(self, section: str, what: str, happened: str) -> None:
        """Note a row."""
        what, happened = (re.sub(r"\s+", " ", text.replace("|", "/")).strip() for text in (what, happened))
        self.changed |= self.rows[section].get(what) != happened
        self.rows[section][what] = happened

    def write(self) -> None:
        """Write the page, if a row is new."""
        if not self.changed:
            return
        parts = [HEAD]
        for section, words in SECTIONS.items():
            table = "\n".join(f"| {what} | {happened} |" for what, happened in sorted(self.rows[section].items()))
            parts.append(f"## {section}\n\n{words}\n\n| tried | what happened |\n|---|---|\n{table}\n")
        self.page.write_text("\n".join(parts))


def plain(text: str, *folders: Path) -> str:
    """A message as the page shows it: without folders and numbers of processes, one line."""
    for folder in folders:
        text = text.replace(str(folder), "...")
    text = re.sub(r"\.\.\.[\w/.-]*/", ".../", text)
    return re.sub(r"\s+", " ", text).strip()
