"""What a dataset is like: sizes, brightness, how rare the foreground is, in how many pieces, how thin."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from raremask.data.samples import Picture
from raremask.distances import thickness
from raremask.masks import boundary

QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Measures:
    """What one picture measures, at the network's size.

    Args:
        name: As in its record.
        group: As in its record.
        split: `train`, `val` or `test`.
        height: Native, in pixels.
        width: Native, in pixels.
        pixels: Of the picture at the network's size, without padding.
        foreground: Pixels of the mask.
        objects: Area in pixels of each connected piece of foreground (8 neighbours), largest first.
        side: Longer side of the box around the largest object, in pixels.
        boundary: Foreground pixels that touch background or the edge of the image.
        thickness: Of the foreground, in pixels; None without foreground or without background.
        histogram: `(C, 256)` how often each value occurs in each channel.
    """

    name: str
    group: str
    split: str
    height: int
    width: int
    pixels: int
    foreground: int
    objects: tuple[int, ...]
    side: int
    boundary: int
    thickness: float | None
    histogram: np.ndarray

    def row(self) -> dict[str, object]:
        """Return it as a row of a table."""
        return {
            "image": self.name,
            "group": self.group,
            "split": self.split,
            "height": self.height,
            "width": self.width,
            "foreground": self.foreground / self.pixels,
            "objects": len(self.objects),
            "largest_area": self.objects[0] if self.objects else 0,
            "largest_side": self.side,
            "boundary": self.boundary,
            "thickness": "" if self.thickness is None else self.thickness,
        }


def measure(split: str, picture: Picture) -> Measures:
    """Measure a picture of a split."""
    image, mask = picture.inside()
    mask = np.ascontiguousarray(mask)
    _, _, pieces, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    pieces = pieces[1:]  # 0 is the background
    pieces = pieces[np.argsort(-pieces[:, cv2.CC_STAT_AREA], kind="stable")]
    as_batch = torch.from_numpy(mask)[None, None]
    thick = float(thickness(as_batch))
    return Measures(
        name=picture.name,
        group=picture.group,
        split=split,
        height=picture.size[0],
        width=picture.size[1],
        pixels=mask.size,
        foreground=int(mask.sum()),
        objects=tuple(int(area) for area in pieces[:, cv2.CC_STAT_AREA]),
        side=int(max(pieces[0, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]])) if len(pieces) else 0,
        boundary=int(boundary(as_batch).sum()),
        thickness=None if np.isnan(thick) else thick,
        histogram=np.stack([np.bincount(channel.ravel(), minlength=256) for channel in image.transpose(2, 0, 1)]),
    )


def fingerprint(measured: Sequence[Measures]) -> dict:
    """Sum up what pictures measure.

    Args:
        measured: At least one.

    Returns:
        Numbers, lists and dictionaries that JSON can hold. Areas are in pixels, lengths too, shares from 0 to 1.
        `foreground` and what follows it leave images without foreground out; their share stands in `empty`.
    """
    filled = [one for one in measured if one.foreground]
    values = np.arange(256)
    histogram = np.sum([one.histogram for one in measured], axis=0)
    channels = []
    for counts in histogram:
        share = counts / counts.sum()
        mean = float(share @ values)
        low, high = np.searchsorted(np.cumsum(share), [0.01, 0.99])
        channels.append(
            {"mean": mean, "std": float(np.sqrt(share @ (values - mean) ** 2)), "p1": int(low), "p99": int(high)}
        )
    splits = {}
    for split in dict.fromkeys(one.split for one in measured):
        mine = [one for one in measured if one.split == split]
        splits[split] = {
            "images": len(mine),
            "groups": len({one.group for one in mine}),
            "empty": float(np.mean([not one.foreground for one in mine])),
            "foreground": float(np.mean([one.foreground / one.pixels for one in mine])),
        }
    sizes = Counter((one.height, one.width) for one in measured)
    return {
        "images": len(measured),
        "groups": len({one.group for one in measured}),
        "splits": splits,
        "sizes": [{"height": h, "width": w, "images": count} for (h, w), count in sizes.most_common()],
        "intensity": channels,
        "empty": 1 - len(filled) / len(measured),
        "foreground_pooled": sum(one.foreground for one in measured) / sum(one.pixels for one in measured),
        "foreground": _quantiles([one.foreground / one.pixels for one in filled]),
        "objects_per_image": _quantiles([len(one.objects) for one in filled]),
        "object_area": _quantiles([area for one in filled for area in one.objects]),
        "largest_side": _quantiles([one.side for one in filled]),
        "boundary_length": _quantiles([one.boundary for one in filled]),
        "thickness": _quantiles([one.thickness for one in filled if one.thickness is not None]),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()}
    return found | {"mean": float(np.mean(values))}
