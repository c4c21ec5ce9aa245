"""Networks: an image in, one channel of logits out, at the image's size whatever it is.

Every network takes `(B, C, H, W)` float in [0, 1], standardises it itself and pads it to what its levels need, so that
the same weights give the same answer wherever they are used.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raremask import BadInput


class Standardize(nn.Module):
    """Takes the mean off each channel and divides by its standard deviation.

    Args:
        mean: One number per channel in [0, 1], or None: each image's own mean.
        std: One number per channel, or None: each image's own standard deviation. Given with `mean`, or neither.

    Raises:
        ValueError: If only one of the two is given.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | None, std: Sequence[float] | None):
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError(f"give mean and std together, or neither; got mean={mean}, std={std}")
        self.per_image = mean is None
        if mean is not None and std is not None:
            self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return `image` `(B, C, H, W)`, standardised."""
        if self.per_image:
            centred = image - image.mean((2, 3), keepdim=True)  # .4 of the time of torch.std_mean
            return centred / (centred.square().mean((2, 3), keepdim=True).sqrt() + 1e-5)
        return (image - self.mean) / self.std


def pad_to(image: Tensor, multiple: int) -> Tensor:
    """Repeat the right and lower edge until both sides are a multiple of `multiple`, and at least twice that.

    Twice, because an instance normalisation over a single pixel would make it 0.

    Args:
        image: `(B, C, H, W)`.
        multiple: The factor by which the network shrinks the image at its lowest level.

    Returns:
        `(B, C, H', W')` with H' >= H and W' >= W.
    """
    # sym_max, because a branch would tie an exported network to images larger than that
    return _repeated(image, (torch.sym_max(side + -side % multiple, 2 * multiple) - side for side in image.shape[-2:]))


def crop_to(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Take off what :func:`pad_to` has added to `(B, C, H', W')`: give `(B, C, *size)`."""
    if torch.compiler.is_exporting():
        return _repeated(logits, (side - padded for side, padded in zip(size, logits.shape[-2:], strict=True)))
    return logits[..., : size[0], : size[1]]


def _repeated(image: Tensor, more: Iterable[int | torch.SymInt]) -> Tensor:
    """Repeat the right and lower edge, or take it off, by index.

    In an exported network even by nothing: a branch, or a slice, would tie the file to one size.
    """
    for dimension, pixels in zip((-2, -1), more, strict=True):
        if torch.compiler.is_exporting() or pixels:
            side = image.shape[dimension]
            image = image.index_select(dimension, torch.arange(side + pixels, device=image.device).clamp(max=side - 1))
    return image


class InstanceNorm(nn.Module):
    """Brings every channel of every image to mean 0 and variance 1, without a learned scale.

    On the CPU channels-last feature maps stay so: PyTorch's instance normalisation does not know that layout, and what
    follows copies every feature map there and back, a third of a step's time (docs/performance.md, network). A batch
    normalisation of one image is the same and does know it; but with few channels its threads write into one cache
    line, and are slower than a copy. These are normalised here in float32, and copied in half precision. A network that
    is compiled or exported has PyTorch's own.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return `features` `(B, C, H, W)`, normalised."""
        if features.device.type != "cpu" or torch.compiler.is_compiling():
            return F.instance_norm(features)
        if features.shape[1] >= 16:  # numbers of 4 bytes in a cache line of 64
            return torch.cat([F.batch_norm(image, None, None, training=True) for image in features.split(1)])
        if features.dtype == torch.float32:
            return _FewNormalized.apply(features)
        return F.instance_norm(features).contiguous(memory_format=torch.channels_last)


class _FewNormalized(torch.autograd.Function):
    """Instance normalisation of few channels that lie last.

    Several pixels make one row, for PyTorch scales rows of a hundred numbers four times as fast as rows of eight.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        """Return `features` `(B, C, H, W)`, normalised."""
        rows, channels = _rows(features), features.shape[1]
        normalized = torch.empty_like(features, memory_format=torch.channels_last)
        written = _rows(normalized)  # again and again: fresh memory takes longer than the sums
        mean = _mean(rows, channels)
        scale = (_mean(torch.sub(rows, mean, out=written).square_(), channels) + 1e-5).rsqrt_()
        torch.addcmul(-mean * scale, rows, scale, out=written)
        ctx.save_for_backward(features, mean, scale)
        return normalized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient by the features."""
        features, mean, scale = ctx.saved_tensors
        rows, channels = _rows(gradient), features.shape[1]
        normalized = torch.addcmul(-mean * scale, _rows(features), scale)
        result = torch.empty_like(features, memory_format=torch.channels_last)
        written = _rows(result)
        along = _mean(torch.mul(rows, normalized, out=written), channels)
        torch.addcmul(-_mean(rows, channels) * scale, rows, scale, out=written)
        written.addcmul_(normalized, along * scale, value=-1)
        return result


def _rows(images: Tensor) -> Tensor:
    """Images `(B, C, H, W)` as `(B, n, k * C)`, up to 16 pixels to a row; a view if their channels lie last."""
    count, channels, height, width = images.shape
    pixels = math.gcd(16, height * width)
    return images.permute(0, 2, 3, 1).reshape(count, -1, pixels * channels)


def _mean(rows: Tensor, channels: int) -> Tensor:
    """The mean of each channel of each image, `(B, 1, k * C)`, once for each pixel of a row."""
    each = rows.mean(1).unflatten(1, (-1, channels)).mean(1, keepdim=True)
    return each.repeat(1, 1, rows.shape[2] // channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda channels: InstanceNorm(),
    "batch": nn.BatchNorm2d,
}
INITS = {
    "he": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
}


class UNet(nn.Module):
    """U-Net with two convolutions per level, strided max pooling down and transposed convolutions up.

    Args:
        in_channels: 1 (grayscale) or 3 (RGB).
        base: Channels of the first level; every level down doubles them.
        levels: How often the resolution is halved; the lowest level has `base * 2**levels` channels.
        norm: `instance` (without learned scale, as the thesis) or `batch`.
        init: `he` or `xavier` for all convolutions; biases start at 0.
        dropout: Share of the channels dropped at the lowest level, in [0, 1).
        mean: Mean of the channels in [0, 1]; None standardises each image by itself.
        std: Standard deviation of the channels; given with `mean`, or neither.

    Raises:
        ValueError: If `norm` or `init` is unknown or a number is out of its range.

    Source:
        Ronneberger, Fischer & Brox (2015), https://arxiv.org/abs/1505.04597, with padded convolutions. The thesis
        uses base 64, 4 levels, instance normalisation and Xavier.

    >>> UNet(in_channels=3, base=4, levels=2)(torch.rand(1, 3, 30, 41)).shape
    torch.Size([1, 1, 30, 41])
    """

    def __init__(
        self,
        in_channels: int = 3,
        base: int = 64,
        levels: int = 4,
        norm: str = "instance",
        init: str = "xavier",
        dropout: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        super().__init__()
        for name, value, known in (("norm", norm, NORMS), ("init", init, INITS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        if base < 1 or levels < 1 or not 0 <= dropout < 1:
            raise ValueError(f"base and levels must be 1 or more, dropout in [0, 1); got {base}, {levels}, {dropout}")
        self.multiple = 2**levels
        widths = [base * 2**level for level in range(levels + 1)]
        self.standardize = Standardize(mean, std)
        self.down = nn.ModuleList(
            _two_convolutions(before, width, norm)
            for before, width in zip([in_channels, *widths], widths, strict=False)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_two_convolutions(2 * width, width, norm) for width in reversed(widths[:-1]))
        self.head = nn.Conv2d(base, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                INITS[init](module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `(B, 1, H, W)` of `image` `(B, C, H, W)` in [0, 1]."""
        features = pad_to(self.standardize(image), self.multiple)
        if features.device.type == "cpu":  # channels last, which is how oneDNN computes convolutions fastest
            features = features.contiguous(memory_format=torch.channels_last)
        skips = []
        for level, convolutions in enumerate(self.down):
            features = convolutions(F.max_pool2d(features, 2) if level else features)
            skips.append(features)
        features = self.dropout(skips.pop())
        for up, merge in zip(self.up, self.merge, strict=True):
            features = merge(torch.cat([skips.pop(), up(features)], dim=1))
        return crop_to(self.head(features), image.shape[-2:])


def _two_convolutions(before: int, width: int, norm: str) -> nn.Sequential:
    layers = []
    for channels in (before, width):  # no bias: the normalisation takes it off again
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), NORMS[norm](width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class EncoderDecoder(nn.Module):
    """A decoder of segmentation-models-pytorch on one of its encoders, from scratch or with pretrained weights.

    Args:
        architecture: Name of the decoder in smp: Unet, UnetPlusPlus, FPN, DeepLabV3Plus, ...
        encoder: Name of the encoder in smp: resnet34, mobilenet_v2, tu-tf_efficientnet_lite0, ...
        encoder_weights: `imagenet` (downloaded once), None (from scratch), or a file with the encoder's state dict:
            `.pth` or `.pt` of plain tensors, or `.safetensors`.
        in_channels: 1 (grayscale; the weights of the first convolution are summed) or 3 (RGB).
        dropout: Share of the decoder's last channels dropped before the head, in [0, 1).
        mean: Mean of the channels in [0, 1] with which the encoder was trained; averaged for one channel. None
            standardises each image by itself.
        std: Standard deviation of the channels; given with `mean`, or neither.

    Raises:
        BadInput: If smp does not know a name, or the weights cannot be had or do not fit.

    Source:
        https://github.com/qubvel-org/segmentation_models.pytorch (MIT), the widest kept collection of 2D networks.
    """

    def __init__(
        self,
        architecture: str = "Unet",
        encoder: str = "resnet34",
        encoder_weights: str | None = "imagenet",
        in_channels: int = 3,
        dropout: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        super().__init__()
        if mean is not None and std is not None and in_channels == 1:
            mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
        self.standardize = Standardize(mean, std)
        file = None if encoder_weights is None or encoder_weights == "imagenet" else Path(encoder_weights)
        if file is not None and not file.is_file():
            raise BadInput(
                f"model.encoder_weights={encoder_weights} is no file; it must be imagenet, null or a file of weights."
            )
        self.net = _from_smp(architecture, encoder, encoder_weights if file is None else None, in_channels)
        if file is not None:
            _load_encoder(self.net.encoder, file)
        self.net.segmentation_head = nn.Sequential(nn.Dropout2d(dropout), self.net.segmentation_head)
        self.multiple = self.net.encoder.output_stride
        _keep_depthwise_exact(self.net)
        # measured on two cores: a step takes .75 (mobilenet_v2), .76 (efficientnet_lite0), .85 (resnet34) of the time,
        # in bfloat16 .79 to .89
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `(B, 1, H, W)` of `image` `(B, C, H, W)` in [0, 1]."""
        return crop_to(self.net(pad_to(self.standardize(image), self.multiple)), image.shape[-2:])


class ExactOnCpu(nn.Module):
    """Mixed into a convolution: under autocast on the CPU it is computed in float32 all the same."""

    def forward(self, features: Tensor) -> Tensor:
        """Return what the convolution gives for `features`, in their own type."""
        if features.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(features)
        with torch.autocast("cpu", enabled=False):
            return super().forward(features.float()).to(features.dtype)


def _keep_depthwise_exact(net: nn.Module) -> None:
    """Compute depthwise convolutions that have a stride or more than 3x3 weights in float32, also beside bfloat16.

    In bfloat16 their gradient takes oneDNN 3 to 22 times as long, and a step of an EfficientNet 1.4 to 1.6 times
    (docs/performance.md, network). Names and weights stay what they are.
    """
    for layer in [module for module in net.modules() if isinstance(module, nn.Conv2d)]:
        slow = max(layer.stride) > 1 or max(layer.kernel_size) > 3
        if layer.groups == layer.in_channels > 1 and slow:
            layer.__class__ = type(type(layer).__name__, (ExactOnCpu, type(layer)), {})


def _from_smp(
    architecture: str, encoder: str, weights: str | bool | None, in_channels: int
) -> smp.base.SegmentationModel:
    known = {name.lower(): name for name in vars(smp) if isinstance(getattr(smp, name), type)}
    if architecture.lower() not in known:
        raise BadInput(_unknown("model.architecture", architecture, list(known.values())))
    if not encoder.startswith("tu-") and encoder not in smp.encoders.get_encoder_names():
        raise BadInput(_unknown("model.encoder", encoder, smp.encoders.get_encoder_names()))
    if encoder.startswith("tu-") and weights:
        weights = True  # what smp expects for timm's encoders: their weights are part of their name
    try:
        return smp.create_model(architecture, encoder, encoder_weights=weights, in_channels=in_channels, classes=1)
    except Exception as error:  # the hub's client raises many types: no connection, a proxy's refusal, no such file
        if not weights:
            raise
        smp.create_model(architecture, encoder, encoder_weights=None, in_channels=in_channels)  # or is it the network?
        reason, _, _ = str(error).partition("\n")
        raise BadInput(
            f"Could not get the ImageNet weights of {encoder}: {type(error).__name__}: {reason}\n"
            "Without a connection, set model.encoder_weights=null to train from scratch, or "
            "model.encoder_weights=<file> with the encoder's state dict (.pth, .pt or .safetensors)"
            f"{_where(encoder, weights)}."
        ) from error


def _where(encoder: str, weights: str | bool) -> str:
    """Say where the weights lie, for who can fetch them elsewhere."""
    if encoder.startswith("tu-"):
        place = getattr(timm.get_pretrained_cfg(encoder.removeprefix("tu-")), "hf_hub_id", None)
    else:
        settings = smp.encoders.encoders[encoder]["pretrained_settings"]
        place = settings.get(weights, {}).get("repo_id")
    return f", such as model.safetensors of {place} on the Hugging Face hub" if place else ""


def _unknown(key: str, value: str, known: list[str]) -> str:
    close = difflib.get_close_matches(value, known, n=3, cutoff=0.5)
    meant = f" Did you mean {', '.join(close)}?" if close else ""
    return f"{key}={value} is not in segmentation-models-pytorch.{meant}"


def _load_encoder(encoder: nn.Module, file: Path) -> None:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever the readers make of a page of HTML or a pointer of Git LFS
        raise BadInput(f"{file} holds no weights ({type(error).__name__}): was it downloaded whole?") from error
    if not isinstance(weights, dict):
        raise BadInput(f"{file} holds no state dict but a {type(weights).__name__}.")
    expected = encoder.state_dict()
    if not weights.keys() & expected.keys():  # timm's encoders are wrapped once more by smp
        weights = {f"model.{key}": value for key, value in weights.items()}
    missing = [key for key in expected if key not in weights]
    if missing:
        raise BadInput(
            f"{file} lacks {len(missing)} of the encoder's {len(expected)} tensors, such as {', '.join(missing[:3])}. "
            "Is it the state dict of this encoder?"
        )
    fitting = {}
    for key, value in expected.items():
        weight = weights[key]
        if weight.ndim == 4 and value.shape[1] == 1 and weight.shape[1] == 3 and weight.shape[0] == value.shape[0]:
            weight = weight.sum(dim=1, keepdim=True)  # grayscale: the three colours are one, as smp does it
        if weight.shape != value.shape:
            raise BadInput(f"{file}: {key} has shape {tuple(weight.shape)}, the encoder needs {tuple(value.shape)}.")
        fitting[key] = weight
    encoder.load_state_dict(fitting)
