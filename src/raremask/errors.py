"""Errors and warnings as sentences: what Hydra, the user or the machine got wrong, in one readable message.

Hydra finds what is wrong with a command line; this room says what was meant.
"""

import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from raremask import BadInput, Fault, faults

OURS = "RAREMASK_PLAIN_ERRORS"  # in the environment: that HYDRA_FULL_ERROR is set by us, not by the user
#: Launchers of plugins, and the extra that brings each.
LAUNCHERS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
#: What lightning-hydra-template calls our settings.
ELSEWHERE = {"ckpt_path": "resume", "data": "dataset", "debug": "trainer=debug", "task_name": "sweep"}


@contextmanager
def plain_errors(settings: Sequence[str] = ()) -> Iterator[None]:
    """Print what the user can mend as one message and exit with 2, a fault of the machine likewise with 1.

    Everything else keeps its traceback. :mod:`raremask.interruption` lists the codes.

    With HYDRA_FULL_ERROR=1 in the environment every error keeps its traceback.

    Args:
        settings: Of this command, and its groups.
    """
    plain_warnings()
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and OURS not in os.environ:
        yield
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would print the error and exit itself
    os.environ[OURS] = "1"  # the processes of trainer=ddp inherit both, and are to know who asked
    try:
        yield
    except (ValueError, HydraException, OmegaConfBaseException) as error:  # BadInput is a ValueError
        message = explain(error, settings)
        if message is None:
            raise
        print(f"\n{message}", file=sys.stderr)
        sys.exit(2)
    except (Fault, OSError, MemoryError, RuntimeError) as error:
        message = str(error) if isinstance(error, Fault) else faults.named(error)
        if message is None:
            raise
        print(f"\n{message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(130)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
        os.environ.pop(OURS, None)


def plain_warnings() -> None:
    """Print warnings as sentences; asked for again after Lightning's import, which has a format of its own."""
    warnings.formatwarning = _format_warning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    place = "" if issubclass(category, UserWarning) else f" ({category.__name__}, {filename}:{lineno})"
    return f"Warning: {message}{place}\n"


def explain(error: Exception, settings: Sequence[str] = ()) -> str | None:
    """Say what was meant, or None if the error is not the user's."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, BadInput):  # perhaps wrapped by Hydra or OmegaConf
            return str(cause)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        *group, choice = error.missing_cfg_file.split("/")
        if group[:1] == ["dataset"] and len(group) > 1:
            path = error.missing_cfg_file.removeprefix("dataset/")
            return (
                f"dataset={path} is not there. Data of your own: dataset=folder dataset.images=<folder> "
                "dataset.masks=<folder>"
            )
        if group == ["hydra", "launcher"] and choice in LAUNCHERS:  # which one of ours builds on
            return f"This launcher needs a plugin: pip install '.[{LAUNCHERS[choice]}]' in the checkout"
        if group and error.options is not None:
            name = "/".join(group)
            return (
                f"{name}={choice} is not there.{meant(choice, error.options, name)}\nChoices: {listed(error.options)}"
            )
    if str(error).startswith("Config group override must be"):  # Hydra's, and it does not say of which group
        return (
            "A group takes the name of a choice; null and numbers are none. Leave the group away, or take its default "
            "out with ~<group>."
        )
    if str(error).startswith("Only one of --run"):  # of Hydra's own options
        return str(error)
    if isinstance(error, OverrideParseException):
        key, equals, value = str(error.override).partition("=")
        if not equals:
            return f"{key}: a setting is written <setting>=<value>, such as loss=dice; --help shows which there are."
        return (
            f"{error.override} cannot be read: {str(error).splitlines()[0]}. Where there are brackets, "
            f"spaces or letters beyond a to z, it takes two kinds of quotes: '{key}=\"{value}\"'; a list takes one."
        )
    if isinstance(error, InstantiationException):
        if isinstance(causes[-1], ValueError | TypeError | ImportError):
            return f"{causes[-1]}\n({str(error).splitlines()[-1]}; HYDRA_FULL_ERROR=1 shows where)"
        return None
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        inside = re.match(r"BadInput raised while resolving interpolation: (.*?)\n +full_key:", str(error), re.DOTALL)
        if inside:  # from run_folder; OmegaConf keeps its text but not the error
            return inside[1]
        cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
        if (
            isinstance(cause, OmegaConfBaseException)
            and cause.parent_node is not None
            and "not in struct" in str(cause)
        ):
            return _unknown_key(cause, settings)
        return "\n".join(str(part) for part in (error, error.__cause__) if part)
    return None


def _unknown_key(error: OmegaConfBaseException, settings: Sequence[str]) -> str:
    """Look for the key among its siblings first, then in the whole config."""
    key, parent = str(error.key), error.parent_node
    full = str(error.full_key)
    prefix = full[: -len(key)]
    groups = () if prefix else [name for name in settings if name not in parent]  # of which nothing is chosen
    if key in groups:
        return f"Nothing is chosen from the group {key}, so nothing in it can be changed. Choose first: {key}=<choice>"
    close = difflib.get_close_matches(key, [*(str(sibling) for sibling in parent), *groups], n=2, cutoff=0.6)
    found = [prefix + sibling for sibling in close]
    if not prefix and ELSEWHERE.get(key, "").partition("=")[0] in parent:
        found = [ELSEWHERE[key]]
    if not found:
        root = parent._get_root()
        names: dict[str, list[str]] = {}
        for path in _paths(root):
            if path.split(".")[0] != "hydra":
                names.setdefault(path.split(".")[-1], []).append(path)
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.7)
        found = sorted((path for name in close for path in names[name]), key=lambda path: not path.startswith(prefix))
        found = found[:3]
    asked = f" Did you mean {' or '.join(found)}?" if found else ""
    inside = [*groups]
    inside += [str(sibling) for sibling in parent if sibling != "hydra" and not str(sibling).startswith("_")]
    return f"{full} is not a setting.{asked}\n{prefix.rstrip('.') or 'The config'} has: {listed(inside)}"


def _paths(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in node:
        path = f"{prefix}{key}"
        yield path
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_interpolation() and not child._is_none():
            yield from _paths(child, f"{path}.")


def meant(word: object, known: Iterable[str], group: str = "") -> str:
    """Ask whether one of those that are known was meant, if one is near: a sentence, or nothing."""
    known = list(known)
    plain = re.sub(r"\W+", "_", str(word)).lower()
    close = [plain] if plain in known else difflib.get_close_matches(str(word), known, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(f'{group}={name}' if group else name for name in close)}?" if close else ""


def listed(names: Sequence[str]) -> str:
    """Write names in a line, sorted."""
    return ", ".join(sorted(names))
