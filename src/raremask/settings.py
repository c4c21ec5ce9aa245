"""What settings of a run are there for: which are groups, and which make no other run or no other method."""

from collections.abc import Mapping
from typing import Any

#: From each of these, and from `trainer`, a run has one choice; the second loss stands in its callbacks, so after them.
GROUPS = ("dataset", "model", "loss", "augment", "optimizer", "scheduler", "callbacks")
SECOND_LOSS = "loss@callbacks.switch.loss"  # the group of the second loss, where there is one
MACHINE = ("accelerator", "devices", "strategy", "num_nodes", "sync_batchnorm", "deterministic")
QUIET = ("enable_model_summary", "enable_progress_bar", "num_sanity_val_steps", "detect_anomaly")
#: Where the data lies, where a run is computed, and what it shows: they may change when a run is gone on with.
PLACE = (
    *("data_dir", "dataset.root", "dataset.workers", "dataset.memory"),
    *(f"trainer.{setting}" for setting in (*MACHINE, *QUIET)),
)
SWEPT = ("dataset.root", "trainer.deterministic", "trainer.sync_batchnorm")  # of these: what a sweep may be over
#: Files of a dataset of one's own: they may lie elsewhere when a run is gone on with.
FILES = ("dataset.images", "dataset.masks", "dataset.pairs")
NO_OTHER_RUN = ("resume", "sweep", "folder", "retry", *PLACE)
#: Nor is it another method if another split or seed is drawn; how long it trains is part of the budget.
NO_OTHER_METHOD = (*NO_OTHER_RUN, "seed", "split", "logger", "leaks", "figures", "trainer.max_epochs")


def flat(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return every value of a nested mapping by its path.

    >>> flat({"loss": {"smooth": 1.0}, "seed": 3})
    {'loss.smooth': 1.0, 'seed': 3}
    """
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = value
    return found
