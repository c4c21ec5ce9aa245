"""From a config to objects: datasets, networks, losses, optimisers, the Trainer; here things are instantiated."""

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from raremask import BadInput, shipped
from raremask.checkpoints import WholeFiles
from raremask.data import splits
from raremask.data.base import ImageMaskData
from raremask.module import Segmenter
from raremask.runfolder import write_text
from raremask.settings import GROUPS, SECOND_LOSS
from raremask.shipped import Shipped

SPLIT = "split.csv"  # in a run's folder: the split of every image
AUTO = "auto.json"  # in a run's folder: the values that stood for `auto`
#: Of what the folder of a run may ask for objects. Not of torch or lightning as a whole: they hold classes that start
#: programs.
TARGETS = (
    "raremask",
    "torch.nn",
    "torch.optim",
    "segmentation_models_pytorch",
    "albumentations",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.trainer",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
)
#: `${a.b}`, `${oc.env:NAME,default}`, `${now:...}`, `${hydra:...}`, without anything inside that is resolved again.
PLAIN_REFERENCE = re.compile(r"(?<!\\)\$\{(?:[\w.]+|(?:oc\.env|now|hydra):[^${}\\]*)\}")
PRECISIONS = ("auto", "32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed")
NETWORKS = ("raremask.nets", "segmentation_models_pytorch")  # what a model from elsewhere may be made of
#: In the environment: modules of the user's own, between commas, whose classes may be made, too.
TRUST = "RAREMASK_TRUST"


def load_config(folder: Path) -> DictConfig:
    """Return the config with which a run was started, to go on with its checkpoints.

    The folder may have come from someone else: what it names to be made is looked at, see :func:`check_targets`.

    Raises:
        BadInput: If there is no config, it is damaged or not that of a run, or it asks for anything else.
    """
    file = folder / ".hydra" / "config.yaml"
    try:
        cfg = OmegaConf.load(file)
        if (folder / AUTO).is_file():
            for key, value in json.loads((folder / AUTO).read_text(encoding="utf-8")).items():
                OmegaConf.update(cfg, key, value)
        check_targets(OmegaConf.to_container(cfg), file)  # before anything is resolved
        if missing := [key for key in (*GROUPS, "split", "trainer") if not OmegaConf.is_dict(cfg.get(key))]:
            raise BadInput(f"{file} is not the config of a run, or damaged: it has no {missing[0]}.")
        if "encoder_weights" in cfg.model:
            cfg.model.encoder_weights = None  # they are in every checkpoint; nothing is fetched again
        if (folder / SPLIT).is_file():  # whatever has become of the dataset or the drawing
            cfg.split.fold, cfg.split.file = None, str(folder / SPLIT)
    except (OSError, YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError, LookupError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{file} or {AUTO} is damaged or missing ({type(error).__name__}: {error})") from error
    return cfg


def choices_of(folder: Path) -> dict[str, str]:
    """Return what was chosen from each group, by name, as Hydra noted it when a run began.

    Raises:
        BadInput: If that is damaged or missing.
    """
    file = folder / ".hydra" / "hydra.yaml"
    try:
        chosen = dict(OmegaConf.load(file).hydra.runtime.choices)
    except (OSError, YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{file} is damaged or missing ({type(error).__name__}: {error})") from error
    return {
        group.replace(SECOND_LOSS, "second_loss"): choice
        for group, choice in chosen.items()
        if choice is not None and not group.startswith("hydra")
    }


def check_targets(node: Any, file: Path) -> None:
    """Refuse a config that asks for anything but classes of those packages that runs are made of.

    Names alone do not do: `raremask.nets.torch.load` would lead out. A class is looked up, and must come from there.
    Nor may a value turn into something that asks, when it is resolved.

    Args:
        node: A config as plain values.
        file: Where it stands, for the message.

    Raises:
        BadInput: If it does.
    """
    if isinstance(node, dict):
        if "_target_" in node and not _is_known(node["_target_"]):
            raise BadInput(
                f"{file} asks for {node['_target_']!r}. From the folder of a run only classes of raremask, "
                "torch.nn, torch.optim, segmentation_models_pytorch, albumentations and some of lightning.pytorch are "
                f"made: anything else could run what someone put there. {_way_in(node['_target_'])}"
            )
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            check_targets(one, file)
    if isinstance(node, str) and "${" in PLAIN_REFERENCE.sub("", node):
        raise BadInput(
            f"{file} has {node!r}. From the folder of a run only plain references to other settings, to the "
            "environment and to the time are followed: others could make anything."
        )


def _is_known(target: object) -> bool:
    if not isinstance(target, str) or not _is_inside(target, TARGETS):
        return False
    try:
        kind = get_class(target)
    except Exception:  # whatever looking it up stumbles over: it is not there
        return False
    return _is_inside(kind.__module__, TARGETS)


def _is_inside(name: str, places: Sequence[str]) -> bool:
    """Whether a class or module is in one of these packages, or in one that the user trusts."""
    own = [place.strip() for place in os.environ.get(TRUST, "").split(",") if place.strip()]
    return any(name == place or name.startswith(f"{place}.") for place in (*places, *own))


def _way_in(target: object) -> str:
    """Say how a class of the user's own is made."""
    if isinstance(target, str) and _is_inside(target, ()):
        return f"{TRUST} names its module, but there is no such class to import: is its folder on PYTHONPATH?"
    return f"What is your own is named in the environment: {TRUST}=<module>."


def build(
    cfg: DictConfig, folder: Path | None = None, data: ImageMaskData | None = None
) -> tuple[ImageMaskData, Segmenter]:
    """Make the data, read and checked, and the module that holds network, loss, optimiser and scheduler.

    Args:
        cfg: The run's config. Values `auto` in its losses are replaced by what the training split says.
        folder: Where to write the split and these values, if there are any; :func:`load_config` takes them from there.
        data: What was made of the same settings before; None reads the images.

    Raises:
        BadInput: If images cannot be used, or the monitored score needs a field of view and the dataset has none.
    """
    pl.seed_everything(cfg.seed, verbose=False)
    net = instantiate(cfg.model)  # weights that cannot be fetched are missed before images are read
    data = data or build_data(cfg)
    if cfg.monitor.endswith("_fov") and data.splits["val"].pictures[0].packed_valid is None:
        raise BadInput(f"monitor={cfg.monitor} needs a field of view, and this dataset has none. Use monitor=val/dice.")
    if data.empty_share() == 1:
        raise BadInput("no training mask has a foreground pixel: there is nothing to learn.")
    if not _has_foreground(data, "val"):
        raise BadInput(
            "no validation mask has a foreground pixel: nothing can be chosen on it. Take another split.seed or fold, "
            "or name images that have some in a table (dataset.pairs, split.file)."
        )
    if not _has_foreground(data, "test"):
        warnings.warn("No test mask has a foreground pixel: its scores say nothing of the foreground.", stacklevel=2)
    found = fill_auto(cfg, data)
    if folder is not None and rank_zero_only.rank == 0:
        write_text(folder / SPLIT, splits.split_csv(data.placed()))
        if found:
            write_text(folder / AUTO, json.dumps(found, indent=2) + "\n")
    module = Segmenter(
        net=net,
        loss=instantiate(cfg.loss),
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        monitor=cfg.monitor,
        empty=cfg.empty,
        seed=cfg.seed,
        tile=cfg.selection.tile,
    )
    return data, module


def build_data(cfg: DictConfig) -> ImageMaskData:
    """Make the data, read, checked and divided.

    Raises:
        BadInput: If images cannot be used or divided.
    """
    augment = instantiate(cfg.augment) if "augment" in cfg else None
    data = instantiate(cfg.dataset, augment=augment, split=instantiate(cfg.split), seed=cfg.get("seed", 0))
    data.setup()
    return data


def fill_auto(cfg: DictConfig, data: ImageMaskData) -> dict[str, float]:
    """Replace every `auto` in a loss by what the loss's class makes of the training split.

    Args:
        cfg: The run's config; changed.
        data: Holds the training split.

    Returns:
        What was found, by its path: `{"loss.pos_weight": 12.5}`.

    Raises:
        BadInput: If a loss has no automatic value for that parameter.
    """
    found = {}
    for path, node in _losses(cfg):
        automatic = [key for key in node if not OmegaConf.is_missing(node, key) and node[key] == "auto"]
        if not automatic:
            continue
        kind = get_class(node._target_)
        values = kind.auto(data.training_foreground()) if hasattr(kind, "auto") else {}
        for key in automatic:
            if key not in values:
                offered = f"it has one for {', '.join(values)}" if values else "it has none"
                raise BadInput(f"{path}.{key}=auto: {kind.__name__} has no automatic {key}; {offered}. Give a number.")
            node[key] = found[f"{path}.{key}"] = values[key]
    return found


def _has_foreground(data: ImageMaskData, split: str) -> bool:
    return any(picture.foreground > 0 for picture in data.splits[split].pictures)


def _losses(node: DictConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node at or below a `loss` that names what it makes, with its path."""
    for key in node:
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        if isinstance(node[key], DictConfig):
            below = f"{path}.{key}".lstrip(".")
            if "loss" in below.split(".") and "_target_" in node[key]:
                yield below, node[key]
            yield from _losses(node[key], below)


def check_trainer(cfg: DictConfig) -> None:
    """Refuse a Trainer that cannot be made.

    Raises:
        BadInput: If a GPU is asked for and PyTorch sees none, or a setting is one that we do not support.
    """
    if cfg.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise BadInput("trainer=gpu asks for a GPU, and PyTorch sees none. Use trainer=auto or trainer=cpu.")
    if cfg.get("devices") == -1 and not torch.cuda.is_available():
        raise BadInput(
            "trainer.devices=-1 takes all GPUs, and PyTorch sees none. Use trainer=auto; for two processes on the CPU, "
            "trainer=ddp trainer.accelerator=cpu trainer.devices=2."
        )
    if cfg.get("check_val_every_n_epoch", 1) != 1:
        raise BadInput(
            "trainer.check_val_every_n_epoch must be 1: the last checkpoint and the plateau follow every epoch."
        )
    if cfg.get("val_check_interval", 1.0) not in (None, 1.0) or isinstance(cfg.get("val_check_interval"), int):
        raise BadInput("trainer.val_check_interval must stay: an epoch is validated when it ends, and then saved.")
    if cfg.get("fast_dev_run"):
        raise BadInput(
            "trainer.fast_dev_run keeps no checkpoint to score. A quick try of everything is trainer=debug; of a "
            "recipe, trainer=debug trainer.max_epochs=1."
        )
    if cfg.get("max_steps", -1) != -1:
        raise BadInput("trainer.max_steps would end within an epoch, unvalidated. Set trainer.max_epochs.")
    if cfg.get("limit_val_batches") == 0:
        raise BadInput("trainer.limit_val_batches must be more than 0: validation chooses the checkpoint.")
    if cfg.get("use_distributed_sampler", True):
        raise BadInput("trainer.use_distributed_sampler must be false: our samplers share the images out themselves.")
    precision = str(cfg.precision)  # 16 comes as a number
    if precision not in PRECISIONS:
        raise BadInput(
            f"trainer.precision={precision}: weights stay in float32. Choices: auto, bf16-mixed, 16-mixed, 32-true."
        )


def build_trainer(cfg: DictConfig, **parts: Any) -> pl.Trainer:
    """Make the Trainer; `precision: auto` becomes the fastest safe one of the device.

    Raises:
        BadInput: As :func:`check_trainer`.
    """
    check_trainer(cfg)
    on_gpu = torch.cuda.is_available() and cfg.accelerator in ("auto", "gpu", "cuda")
    accelerator = "gpu" if on_gpu else "cpu" if cfg.accelerator == "auto" else cfg.accelerator  # auto would take an MPS
    precision = str(cfg.precision)
    if precision == "auto":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _cpu_computes_in("bf16-mixed")
        precision = "bf16-mixed" if bf16 else "16-mixed" if on_gpu else "32-true"
    elif "16" in precision and not on_gpu and not _cpu_computes_in(precision):
        warnings.warn(
            f"trainer.precision={precision}, and this CPU has no instructions for it: a step has been seen to take "
            "over 100 times as long as in 32-true. Use trainer.precision=auto, or 32-true.",
            stacklevel=2,
        )
    plugins = [WholeFiles()]
    if SLURMEnvironment.detect():  # its own handler writes a checkpoint in the middle of a step, and has hung at that
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return instantiate(cfg, accelerator=accelerator, precision=precision, plugins=plugins, **parts)


def _cpu_computes_in(precision: str) -> bool:
    """Whether the CPU has instructions for half precision; False where PyTorch cannot tell."""
    names = ("avx512_bf16", "amx_bf16", "bf16") if "bf16" in precision else ("avx512_fp16", "amx_fp16", "fp16_arith")
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in names)


def network(place: Path, model: Shipped) -> nn.Module:
    """Make the network of a model, with its weights.

    It may have come from someone else: nothing but a network is made.

    Args:
        place: Of :func:`raremask.shipped.find`.
        model: Of :func:`raremask.shipped.read`.

    Raises:
        BadInput: If it names another class than that of a network, or the weights do not fit.
    """
    if place.is_file():
        return shipped.OnnxNet(place)
    arguments = dict(model.network) if isinstance(model.network, dict) else {}
    if "encoder_weights" in arguments:
        arguments["encoder_weights"] = None  # they are among the weights; nothing is fetched
    target = str(arguments.pop("_target_", None))
    try:
        kind: type = get_class(target) if _is_inside(target, NETWORKS) else object
    except ImportError as error:
        raise BadInput(f"{place}: there is no network {target}; of another version?") from error
    if not (issubclass(kind, nn.Module) and _is_inside(kind.__module__, NETWORKS)):  # raremask.nets.torch is a way out
        raise BadInput(
            f"{place}: a network is made by a class in {' or '.join(NETWORKS)}; got {target}. {_way_in(target)}"
        )
    try:
        net = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{place}: the network cannot be made as it says; of another version? {error}") from error
    return shipped.load_weights(place, net)
