"""The model as it is handed on: its weights and all that is needed to use them, without the run and without pickle.

`model/model.safetensors` and `model/model.json` stand in every run's folder when it ends; an exported ONNX file carries
the same facts in its metadata. A `.pt2` file of torch.export carries them too, but is not read here: PyTorch falls back
to pickle when it loads one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from raremask import BadInput
from raremask.runfolder import standing, write_bytes, write_text
from raremask.selection import Selection

FACTS, WEIGHTS = "model.json", "model.safetensors"
KEY = "raremask"  # of the facts in the metadata of an exported file
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
MISSING = "ONNX needs more packages: pip install '.[onnx]' in the checkout"
CLOSE = 1e-3  # between probabilities: more is another network
CLASSES = ["background", "foreground"]
INTERFACE = """\
Image: gray or RGB, 8 bits (of 16-bit files the upper 8 of the bits in use). Bring it to `size` (null: as it is): \
`stretch` both sides, or with `pad` keep the proportions, centre it and fill up with black; smaller by area, larger \
bilinearly. Divide by 255: input `image`, float32 (batch, channels, height, width); the network standardises it. The \
output `logits`, (batch, 1, height, width): their sigmoid is the probability of the foreground. `tile` (if not \
null): larger images are cut into windows of that size which overlap by half, blended with a Gaussian of an eighth \
of the window. selection.views: flips is the mean over the image mirrored in both directions (4), turns also turned \
by quarters (8), scales the flips at 0.75, 1 and 1.25 times the size (12). Cut off what was padded, bring the \
probability to the size of the image's file (bilinear, antialiased where it shrinks), take what is more than \
selection.threshold; then drop pieces below min_area pixels, keep the largest piece, fill holes, as the selection \
says."""


@dataclass(frozen=True)
class Shipped:
    """What must be known to use a network's weights.

    Args:
        network: What makes the network: its class as `_target_`, and its arguments.
        size: Height and width in pixels that images are brought to; None takes them as they are.
        resize: `stretch` or `pad`.
        channels: 1 or 3.
        bits: In use in 16-bit images.
        selection: What turns its probabilities into masks.
        tile: Height and width of the windows that larger images are cut into, or None.
        provenance: Where it comes from: dataset, loss, seed, scores, versions.

    Raises:
        ValueError: If a value is not one of those.
    """

    network: Mapping[str, Any]
    size: Sequence[int] | None
    resize: str
    channels: int
    bits: int
    selection: Selection
    tile: Sequence[int] | None
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("tile", self.tile)):
            if value is not None and not (
                len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value)
            ):
                raise ValueError(f"{name} must be [height, width] in pixels, or null; got {value}")
        if self.channels not in (1, 3) or self.resize not in ("stretch", "pad") or self.bits not in range(8, 17):
            raise ValueError(
                f"channels must be 1 or 3, resize stretch or pad, bits 8 to 16; got {self.channels}, {self.resize} and "
                f"{self.bits}"
            )

    def text(self) -> str:
        """Return it as JSON."""
        facts = asdict(self) | {"classes": CLASSES, "interface": INTERFACE}
        return json.dumps(facts, indent=2, allow_nan=False) + "\n"

    def write(self, folder: Path, net: nn.Module) -> None:
        """Write the two files.

        Args:
            folder: Made if it is not there.
            net: Its weights are written.
        """
        weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
        write_bytes(folder / WEIGHTS, safetensors.torch.save(weights))
        write_text(folder / FACTS, self.text())


def find(path: Path) -> Path:
    """Return what holds a model: the folder of its two files, in a run's folder or by itself, or an ONNX file.

    Raises:
        BadInput: If there is none.
    """
    if path.suffix == SUFFIXES["onnx"] and path.is_file():
        return path
    if path.suffix == SUFFIXES["torch_export"]:
        raise BadInput(
            f"{path}: PyTorch may unpickle what it reads from a .pt2 file, so it is not read here. Use the model/ "
            "folder of the run, or export it as format=onnx."
        )
    for folder in (path / "model", path):
        if all((folder / name).is_file() for name in (FACTS, WEIGHTS)):
            return folder
    if (path / ".hydra" / "config.yaml").is_file():
        raise BadInput(
            f"{path} has no model/ yet: its training has {standing(path)}. Go on with train.py resume={path}, "
            "or leave it out by naming the others."
        )
    raise BadInput(f"{path} is neither the folder of a run, nor of a model ({FACTS}, {WEIGHTS}), nor an .onnx file.")


def read(place: Path) -> Shipped:
    """Read the facts about a model.

    Args:
        place: Of :func:`find`.

    Raises:
        BadInput: If they are not there or not ours.
    """
    try:
        facts = json.loads(_metadata(place) if place.is_file() else (place / FACTS).read_text(encoding="utf-8"))
        facts = {name: facts[name] for name in Shipped.__dataclass_fields__}
        return replace(Shipped(**facts), selection=Selection(**facts["selection"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{place}: not a model of raremask, or of another version: {error}") from error


def load_weights(place: Path, net: nn.Module) -> nn.Module:
    """Give a network the weights of a model.

    Raises:
        BadInput: If they do not fit.
    """
    try:
        net.load_state_dict(safetensors.torch.load_file(place / WEIGHTS))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise BadInput(f"{place / WEIGHTS}: {str(error).splitlines()[0]} Does it belong to {FACTS}?") from error
    return net


class OnnxNet(nn.Module):
    """A network in an ONNX file, on the CPU; logits as from any other.

    Args:
        file: What :func:`export` wrote.
    """

    def __init__(self, file: Path):
        super().__init__()
        self.session = _session(file)
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # says on which device it computes

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `(B, 1, H, W)` of `image` `(B, C, H, W)` in [0, 1]."""
        return torch.from_numpy(self.session.run(None, {"image": image.cpu().numpy()})[0]).to(image.device)


def export(model: Shipped, net: nn.Module, kind: str, file: Path) -> float:
    """Write a network as one file that needs neither this package nor its classes, with the facts in its metadata.

    Any batch and size of images does.

    Args:
        model: The facts.
        net: Takes `(B, C, H, W)`, gives logits `(B, 1, H, W)`; put into evaluation mode.
        kind: `onnx` or `torch_export`.
        file: Where; its suffix is `.onnx` or `.pt2`.

    Returns:
        The largest difference of a probability between the network and the file, over images of several sizes.

    Raises:
        BadInput: If a package is missing, or the file computes something else; then there is none.
    """
    height, width = model.size or (96, 96)
    sizes = [(height, width), (height + 5, width + 3), (max(64, height // 2), max(64, width // 2 + 1)), (16, 11)]
    sizes += [(model.tile[0], model.tile[1])] if model.tile else []
    random = torch.Generator().manual_seed(0)
    images = [torch.rand(2, model.channels, *size, generator=random) for size in sizes]
    anything = {"image": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    file.parent.mkdir(parents=True, exist_ok=True)
    final, file = file, file.with_name(f".partial.{file.name}")  # nobody takes what has not been compared
    net = net.eval()
    program = torch.export.export(net, (images[1],), dynamic_shapes=anything)
    if kind == "torch_export":
        torch.export.save(program, file, extra_files={f"{KEY}.json": model.text()})
        again: nn.Module = torch.export.load(file).module()  # written a moment ago by ourselves
    else:
        _to_onnx(program, model, file)
        again = OnnxNet(file)
    with torch.no_grad():
        far = [float((torch.sigmoid(net(image)) - torch.sigmoid(again(image))).abs().max()) for image in images]
    if not max(far) <= CLOSE or not np.isfinite(far).all():
        file.unlink()
        raise BadInput(
            f"the exported file computes other probabilities than the network: {max(far):.2g} apart, or NaN."
        )
    file.replace(final)
    return max(far)


def _to_onnx(program: torch.export.ExportedProgram, model: Shipped, file: Path) -> None:
    try:
        import onnxruntime  # noqa: F401  runs the file afterwards
        import onnxscript  # noqa: F401  what torch.onnx builds on
    except ImportError as error:
        raise BadInput(MISSING) from error
    made = torch.onnx.export(program, input_names=["image"], output_names=["logits"], dynamo=True, verbose=False)
    assert made is not None  # with dynamo=True it never is
    made.model.metadata_props[KEY] = model.text()
    made.save(file)


def _metadata(file: Path) -> str:
    facts = _session(file).get_modelmeta().custom_metadata_map
    if KEY not in facts:
        raise BadInput(f"{file}: its metadata does not say how images are prepared; it is no export of raremask.")
    return facts[KEY]


def _session(file: Path) -> Any:
    """Open an ONNX file, on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BadInput(MISSING) from error
    try:
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a type of its own for each way to be wrong, under no common one
        raise BadInput(f"{file}: no ONNX file, or a damaged one: {str(error).splitlines()[0]}") from error
