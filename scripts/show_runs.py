"""Print the test scores of all finished runs below a folder: `python scripts/show_runs.py outputs/sweeps/<name>`."""

import json
import os
import sys
from pathlib import Path

from raremask.runfolder import BEST, PLAIN, beside_baselines, format_scores, read_counts


def main(folder: Path) -> None:
    """Print a row per run, the best first, what painting nothing or everything scores, and where to look next."""
    runs, floor, unfinished, policies = {}, {}, [], set()
    for file in sorted(folder.rglob("status.json")):
        status = json.loads(file.read_text())
        name = str(file.parent.relative_to(folder))  # every run has a row of its own
        if status["state"] != "done":
            unfinished.append(f"{name}: {status['state']} {status.get('reason', '')}")
            continue
        scores = beside_baselines(read_counts(file.parent / "per_image_test.csv"), status["empty"])
        policies.add(status["empty"])
        runs[name] = scores.pop(BEST)
        scores.pop(PLAIN, None)
        floor |= {f"{status['dataset']} {baseline}": row for baseline, row in scores.items()}
    if not runs:
        sys.exit("\n".join([f"No finished run below {folder}.", *unfinished]))
    best_first = dict(sorted(runs.items(), key=lambda run: -run[1]["dice"]))
    print("\nTest split, mean over images at native size; dice_pooled: all pixels as one image")
    print(f"An empty mask left empty counts as: {' or '.join(sorted(policies))}\n")
    print("\n".join([format_scores(best_first | floor), *unfinished]))
    place = os.path.relpath(folder)
    print(f"\nPictures: {place}/**/figures/gallery_test.png")
    print(f"Curves:   {os.path.relpath(Path(sys.executable).parent / 'tensorboard')} --logdir {place}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
