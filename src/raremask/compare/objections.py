"""What a reviewer would object to in a comparison: a function for each rule, in the order in which they are told."""

import math
from collections.abc import Iterator, Sequence

from raremask import some
from raremask.compare.results import BUDGET, Run, Table
from raremask.compare.statistics import CONFIDENCE, smallest_p
from raremask.runfolder import first_line

SEEDS = 3  # fewer say hardly how much a score depends on them


def objections(runs: Sequence[Run], compared: Table) -> list[str]:
    """Say what a reviewer would object to.

    Args:
        runs: With labels.
        compared: Of :func:`raremask.compare.results.table`.
    """
    done = [run for run in runs if run.rows]
    return [
        *_unfinished(runs),
        *_collapsed(done),
        *_divided_differently(done, compared),
        *_left_out(compared),
        *_changed_masks(done),
        *_mixed_configs(done, compared),
        *_unsaid(done, compared),
        *_few_seeds(compared),
        *_one_validated(done),
        *_looked_at_test(done),
        *_leaks(done),
        *_unequal_budgets(done),
        *_few_groups(compared),
    ]


def _unfinished(runs: Sequence[Run]) -> Iterator[str]:
    if unfinished := [run for run in runs if not run.rows]:
        yield f"{len(unfinished)} of {len(runs)} runs are not done and left out: {_names(unfinished)}"


def _collapsed(done: Sequence[Run]) -> Iterator[str]:
    if collapsed := [run for run in done if run.collapsed]:
        yield f"{len(collapsed)} of the runs collapsed: {_names(collapsed)}. {collapsed[0].collapsed}"


def _divided_differently(done: Sequence[Run], compared: Table) -> Iterator[str]:
    splits = {frozenset((run.fold, run.split) for run in done if run.label == label) for label in compared.scores}
    if compared.lacking:
        who = some([f"{name} ({count})" for name, count in compared.lacking.items()])
        yield f"Test images that some runs lack are left out: the splits differ, or a fold is missing. Lacking: {who}"
    elif len(splits) > 1:
        yield "The runs have the same test images but were trained on different ones."


def _left_out(compared: Table) -> Iterator[str]:
    if any(compared.alarms.values()):
        shares = ", ".join(f"{label} {share:.0%}" for label, share in compared.alarms.items())
        yield (
            f"{compared.empties} images without foreground are left out, and with them what was painted there: on "
            f"{shares} of them."
        )


def _changed_masks(done: Sequence[Run]) -> Iterator[str]:
    areas: dict[str, set[float]] = {}
    for run in done:
        for image, row in run.rows.items():
            areas.setdefault(image, set()).add(row["tp"] + row["fn"])
    if changed := sum(len(of_image) > 1 for of_image in areas.values()):
        yield f"The true masks of {changed} images are not the same in all runs: the data have changed."


def _mixed_configs(done: Sequence[Run], compared: Table) -> Iterator[str]:
    for label in compared.scores:
        configs = [run.config for run in done if run.label == label]
        keys = dict.fromkeys(key for config in configs for key in config)
        if differ := [key for key in keys if len({config.get(key) for config in configs}) > 1]:
            yield f"The runs of {label} are not of one config: they differ in {', '.join(differ[:5])}."


def _unsaid(done: Sequence[Run], compared: Table) -> Iterator[str]:
    """What is one thing in all runs of a label, another in those of another, and was neither chosen nor typed."""
    keys = dict.fromkeys(key for run in done for key in run.settings)
    said = {key for key in keys if len({run.settings.get(key) for run in done}) > 1}
    if "experiment" in said:  # recipes differ in whatever they say
        return
    said |= {"callbacks", *BUDGET} if "second_loss" in said else {*BUDGET}  # a budget has a line of its own
    found = []
    for path in dict.fromkeys(path for run in done for path in run.config):
        values = [{run.config.get(path, "nothing") for run in done if run.label == label} for label in compared.scores]
        if any(path == key or path.startswith(f"{key}.") for key in said) or any(len(value) > 1 for value in values):
            continue
        if len(different := sorted(set().union(*values))) > 1:
            found.append(f"{path} is {' or '.join(different)}")
    if found:
        yield f"They differ in more than their names say: {'; '.join(found[:5])}."


def _few_seeds(compared: Table) -> Iterator[str]:
    if few := [f"{label} ({len(scores)})" for label, scores in compared.scores.items() if len(scores) < SEEDS]:
        yield (
            f"Fewer than {SEEDS} seeds: {', '.join(few)}. How much a score depends on the seed is not known, or "
            "hardly; intervals of a single seed leave it out and are too narrow."
        )


def _one_validated(done: Sequence[Run]) -> Iterator[str]:
    if alone := [run for run in done if run.selection.get("groups") == 1]:
        yield (
            f"{len(alone)} of the runs had a single patient or sequence to choose threshold and post-processing on, "
            f"which may fit no other: {_names(alone)}"
        )


def _looked_at_test(done: Sequence[Run]) -> Iterator[str]:
    if again := [run for run in done if run.selection.get("test_uses", 1) > 1]:
        most = max(run.selection["test_uses"] for run in again)
        yield f"{len(again)} of the runs looked at test more than once, one {most} times: {_names(again)}"


def _leaks(done: Sequence[Run]) -> Iterator[str]:
    if any(run.leaks for run in done):
        yield "Images of different splits are nearly the same (leaks.csv of the runs): scores are too good."


def _unequal_budgets(done: Sequence[Run]) -> Iterator[str]:
    for path in BUDGET:
        values = {run.budget[path] for run in done}
        if len(values) > 1 and not any(path in run.settings for run in done):
            yield f"Unequal budgets: {path} is {' or '.join(sorted(values))}."


def _few_groups(compared: Table) -> Iterator[str]:
    groups, tests = len(set(compared.groups.tolist())), math.comb(len(compared.scores), 2)
    if tests and (least := smallest_p(groups, tests)) >= 1 - CONFIDENCE:
        yield (
            f"With {groups} groups (patients, sequences) in the test split and {tests} pairs the smallest corrected "
            f"p value that can come out is {least:.2g}: nothing can be told apart, however large it is. Where the "
            "dataset does not fix the test split, five folds (split.fold=0,1,2,3,4) test every image once."
        )


def _names(runs: Sequence[Run]) -> str:
    names = []
    for run in runs:
        fold = "" if run.fold is None else f" fold {run.fold}"
        why = f" ({run.state}: {first_line(run.reason)})" if run.reason else ""
        names.append(f"{run.label} seed {run.seed}{fold}{why}")
    return some(names)
