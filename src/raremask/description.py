"""What a dataset is like, in words: its fingerprint, what knows nothing scores on it, and what follows for training."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from tqdm import tqdm

from raremask import BadInput, figures
from raremask.data import leaks
from raremask.data.base import ImageMaskData
from raremask.data.fingerprint import Measures, fingerprint, measure
from raremask.data.leaks import Twins
from raremask.losses.boundary import BoundaryGaussian
from raremask.losses.overlap import Tversky
from raremask.losses.pixel import WeightedBCE
from raremask.metrics.overlap import baselines, summary
from raremask.runfolder import write_figure, write_table, write_text

FIGURES = ("fingerprint", "examples", "weights", "twins")  # files that a description may have
SIGMAS = (1, 3, 6, 10)  # pixels, as in the thesis' figure
THIN, LONG = 12, 32  # an object this many times longer than thick is a line; a crop holds it this many times
MOST_DRAWS = 20  # crops of an image in an epoch
CRUMB = 10  # an object below so many pixels is hardly one
SEEN = 0.99  # how sure a batch should be to hold foreground
SHOWN, EMPTY_SHOWN = 10, 3  # images, and those of them that have no foreground


@dataclass(frozen=True)
class Suggestion:
    """A setting, as it is written on the command line, and why.

    Args:
        setting: What to write; empty if nothing needs to be changed.
        reason: The numbers behind it.
    """

    setting: str
    reason: str


def suggestions(found: Mapping, data: ImageMaskData) -> list[Suggestion]:
    """Derive settings from a fingerprint, each with its reason.

    Args:
        found: Of :func:`raremask.data.fingerprint.fingerprint`.
        data: Whose training split decides about losses, as `auto` does in training.
    """
    if found["empty"] == 1:
        return [Suggestion("", "no image has foreground: there is nothing to learn")]
    training = data.training_foreground()
    try:
        weight = WeightedBCE.auto(training)["pos_weight"]
        sigma = BoundaryGaussian.auto(training)["sigma"]
    except BadInput as error:
        return [Suggestion("", f"{error} Losses that weigh foreground against background have nothing to weigh.")]
    prices = Tversky.auto(training)
    made = [
        Suggestion(
            f"loss=weighted_bce loss.pos_weight={weight:.3g}",
            f"{training.imbalance:.3g} background pixels to one of foreground in training"
            + ("; more than 100 is not used" if training.imbalance > weight else ""),
        ),
        Suggestion(
            f"loss=tversky loss.alpha={prices['alpha']:.2g} loss.beta={prices['beta']:.2g}",
            "a missed pixel costs more than a false one, the more so the rarer the foreground is",
        ),
        Suggestion(
            f"loss=boundary_gaussian loss.sigma={sigma:.2g}",
            f"weights fade out over about {2 * sigma:.0f} pixels; the foreground is {training.thickness:.3g} thick",
        ),
    ]
    height, width = data.splits["train"].pictures[0].mask.shape
    made.append(_crop(found["largest_side"]["p95"], found["thickness"], (height, width), found["intensity"]))
    empty = found["splits"]["train"]["empty"]
    if empty > 0:
        images = found["splits"]["train"]["images"]
        least = int(np.ceil(np.log(1 - SEEN) / np.log(empty)))
        setting = f"dataset.batch_size={max(2, least)}" if least <= images // 4 else "dataset.foreground_share=0.5"
        setting = "" if least <= data.batch_size else setting
        made.append(
            Suggestion(
                setting,
                f"{empty:.0%} of the training masks are empty: batches of {least} or more, of which fewer than one in "
                f"{1 / (1 - SEEN):.0f} has no foreground, or dataset.foreground_share=0.5, which draws more of it",
            )
        )
    else:
        made.append(Suggestion("", "every training image has foreground: any batch size will see some"))
    high, wide = np.median([picture.size for _, picture in data.pictures()], axis=0).astype(int).tolist()
    thick = found["thickness"]["median"] if found["thickness"] else np.inf
    if thick < 6 and high * wide > 2 * height * width and high >= height and wide >= width:
        made.append(
            Suggestion(
                f"dataset.size=[{high},{wide}]",
                f"the foreground is {thick:.2g} pixels thick at {width}x{height}, and the files have more; with "
                "crops, if that is too large for memory",
            )
        )
    if found["object_area"]["median"] < CRUMB and found["objects_per_image"]["mean"] > 1.2:
        made.append(
            Suggestion(
                "",
                f"half of the objects have {found['object_area']['median']:.0f} pixels or fewer: look whether these "
                "are crumbs of the annotation",
            )
        )
    if data.vanished:
        made.append(
            Suggestion(
                "dataset.size=<larger>",
                f"{len(data.vanished)} masks lose all their foreground at {width}x{height}, such as {data.vanished[0]}",
            )
        )
    return made


def _crop(
    side: float, thick: Mapping[str, float] | None, size: tuple[int, int], intensity: Sequence[Mapping[str, float]]
) -> Suggestion:
    """Crops that hold the largest object twice, or much of a long thin one, if they are small beside the image."""
    long = f"the largest object is up to {side:.0f} pixels long (95 % of the images) in {size[1]}x{size[0]}"
    crop, why = 2 * side, f"{long}: a crop of twice that holds it"
    if thick is not None and THIN * thick["p95"] < side:
        crop, why = LONG * thick["p95"], f"{long} but only {thick['p95']:.2g} thick: a crop holds enough of it"
    crop = max(64, int(np.ceil(crop / 32)) * 32)
    if crop > 0.75 * min(size):
        return Suggestion("", f"{long}: train on whole images, not on crops")
    steps = f"augment.steps.foreground_crop.height={crop} augment.steps.foreground_crop.width={crop}"
    fixed = (f"model.{key}=[{','.join(f'{one[key] / 255:.2f}' for one in intensity)}]" for key in ("mean", "std"))
    return Suggestion(
        f"augment=patches {steps} dataset.draws={min(MOST_DRAWS, round(size[0] * size[1] / crop**2))}",
        f"{why}; with model=unet also model.norm=batch {' '.join(fixed)}: what is standardised by itself is not "
        "the same in a crop as in the image",
    )


def plain(value: object) -> object:
    """Return what JSON can hold: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def uninformed(measured: Sequence[Measures], empty: str) -> dict[str, dict[str, float]]:
    """Score predictions that know nothing of the images: the floor under every result.

    Args:
        measured: The pictures.
        empty: Policy for images whose mask and prediction are both empty.

    Returns:
        A summary each for `all background`, `all foreground` and `random`.
    """
    counts = np.array([[0, 0, one.foreground, one.pixels - one.foreground] for one in measured])
    return {name: summary(cells, empty) for name, cells in baselines(counts).items()}


def draw(data: ImageMaskData, measured: Sequence[Measures], found: Sequence[Twins]) -> dict[str, Figure]:
    """Draw histograms, example images, weight maps of Boundary-Gaussian, and twins if there are some.

    Args:
        data: The pictures.
        measured: Of each picture, in the order of `data.pictures()`.
        found: Twins among them.

    Returns:
        Figures by the name of their file.
    """
    placed = data.pictures()
    filled = [index for index, one in enumerate(measured) if one.foreground]
    share = [one.foreground / one.pixels for one in measured]
    panels: list[tuple[str, str, Sequence[float], bool]] = [
        ("Foreground, images that have some", "share of the pixels", [share[index] for index in filled], True),
        ("Objects per image", "number", [len(measured[index].objects) for index in filled], False),
        ("Area of objects", "pixels", [area for index in filled for area in measured[index].objects], True),
        ("Thickness of the foreground", "pixels", [one.thickness for one in measured if one.thickness], True),
        ("Boundary per image", "pixels", [measured[index].boundary for index in filled], True),
    ]
    drawn = {"fingerprint": figures.histograms(panels, np.sum([one.histogram for one in measured], axis=0))}
    if filled:
        ordered = sorted(filled, key=lambda index: share[index])
        empty = [index for index, one in enumerate(measured) if not one.foreground][:EMPTY_SHOWN]
        steps = np.linspace(0, len(ordered) - 1, min(SHOWN - len(empty), len(ordered))).round().astype(int)
        chosen = [ordered[step] for step in steps]
        shown = [
            (f"{placed[index][1].name}\n{share[index]:.2%}", *placed[index][1].inside()) for index in chosen + empty
        ]
        drawn["examples"] = figures.contours(shown, "From the smallest to the largest foreground")
        image, mask = placed[ordered[len(ordered) // 2]][1].inside()
        as_batch = torch.from_numpy(np.ascontiguousarray(mask))[None, None]
        maps = {f"sigma = {sigma}": BoundaryGaussian(float(sigma)).weights(as_batch)[0, 0].numpy() for sigma in SIGMAS}
        drawn["weights"] = figures.weight_maps(image, mask, maps, "What a pixel weighs in Boundary-Gaussian")
    if found:
        titles = [f"{split} {picture.name}" for split, picture in placed]
        drawn["twins"] = figures.twins(found, titles, [picture.inside()[0] for _, picture in placed])
    return drawn


def text(
    title: str,
    data: ImageMaskData,
    found: Mapping,
    floor: Mapping[str, Mapping[str, float]],
    advice: Sequence[Suggestion],
    twins: Sequence[str],
    pictures: Sequence[str],
    empty: str,
) -> str:
    """Write the description as Markdown.

    Args:
        title: Name of the dataset.
        data: The dataset.
        found: Its fingerprint.
        floor: Of :func:`uninformed`.
        advice: Of :func:`suggestions`.
        twins: A line for each finding about twins.
        pictures: Names of the figures.
        empty: Policy for empty masks that `floor` went by.
    """
    sizes, first = found["sizes"], found["sizes"][0]
    more = f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
    groups = f" of {found['groups']} groups" if found["groups"] < found["images"] else ", no groups known"
    height, width = data.splits["train"].pictures[0].mask.shape
    seen = f"{width}x{height}" + (f" ({data.resize})" if (height, width) != (first["height"], first["width"]) else "")
    channels = ", ".join(f"{one['mean']:.0f} ± {one['std']:.0f}" for one in found["intensity"])
    lines = [
        f"# {title}",
        "",
        f"- {found['images']} images{groups}, {first['width']}x{first['height']}{more}; the network sees {seen}",
        f"- split: {data.split.words}",
        f"- intensity {channels} (mean ± standard deviation of each channel, of 255)",
        f"- {found['empty']:.1%} of the masks are empty; {found['foreground_pooled']:.2%} of all pixels are foreground",
        "",
        "| split | images | groups | empty | foreground |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {one['images']} | {one['groups']} | {one['empty']:.1%} | {one['foreground']:.2%} |"
        for name, one in found["splits"].items()
    ]
    named = {
        "foreground": ("foreground, share of the pixels", "{:.2%}"),
        "objects_per_image": ("objects per image", "{:.3g}"),
        "object_area": ("area of an object, pixels", "{:.0f}"),
        "largest_side": ("longer side of the largest object, pixels", "{:.0f}"),
        "thickness": ("thickness, pixels", "{:.3g}"),
        "boundary_length": ("boundary, pixels", "{:.0f}"),
    }
    present = {key: how for key, how in named.items() if found[key]}
    if present:
        names = list(next(found[key] for key in present))
        lines += [
            "",
            "Images with foreground, at the network's size:",
            "",
            f"| | {' | '.join(names)} |",
            "|---|" + "---|" * len(names),
        ]
        lines += [
            f"| {name} | {' | '.join(shape.format(found[key][column]) for column in names)} |"
            for key, (name, shape) in present.items()
        ]
    scores = [name for name in next(iter(floor.values())) if not name.startswith("foreground")]
    lines += [
        "",
        f"What knows nothing scores (an empty mask left empty counts as: {empty}):",
        "",
        f"| | {' | '.join(scores)} |",
        "|---|" + "---|" * len(scores),
    ]
    lines += [f"| {name} | {' | '.join(f'{row[score]:.4f}' for score in scores)} |" for name, row in floor.items()]
    lines += ["", "What follows for training:", ""]
    lines += [f"- `{one.setting}`: {one.reason}" if one.setting else f"- {one.reason}" for one in advice]
    lines += ["", "Images that are nearly the same:", "", *(f"- {line}" for line in twins)]
    lines += ["", *(f"![{name}]({name}.png)" for name in pictures), ""]
    return "\n".join(lines)


def describe(data: ImageMaskData, name: str, folder: Path, empty: str) -> None:
    """Print what a dataset is like, and write it as Markdown, JSON, CSV and pictures.

    Args:
        data: The dataset, read.
        name: What it is called.
        folder: Where to write; an older description there is replaced.
        empty: Policy for images whose mask and prediction are both empty.
    """
    placed = data.pictures()
    with ThreadPoolExecutor() as pool:
        each = pool.map(lambda pair: measure(*pair), placed)
        measured = list(tqdm(each, total=len(placed), desc="Measuring", leave=False, disable=None))
    images, masks = zip(*(picture.inside() for _, picture in placed), strict=True)
    found = leaks.twins(images)
    contrary = leaks.contradictions(found, masks)
    across = [pair for pair in found if placed[pair.first][0] != placed[pair.second][0]]
    print_of, floor = fingerprint(measured), uninformed(measured, empty)
    advice = suggestions(print_of, data)
    titles = [f"{split} {picture.name}" for split, picture in placed]
    said = [
        f"{len(found)} pairs, {len(across)} of them in different splits (all in twins.csv)",
        *(f"{titles[p.first]} is {titles[p.second]} ({p.likeness:.2f})" for p in across[:5]),
        f"{len(contrary)} of the pairs contradict each other: their masks have a Dice below {leaks.AGREE}",
        *(f"{titles[p.first]} and {titles[p.second]}: Dice {dice:.2f}" for p, dice in contrary[:5]),
    ]
    drawn = draw(data, measured, found)
    words = text(name, data, print_of, floor, advice, said, list(drawn), empty)
    folder.mkdir(parents=True, exist_ok=True)
    for file in FIGURES:
        (folder / f"{file}.png").unlink(missing_ok=True)  # of an older description
    for file, figure in drawn.items():
        write_figure(folder / f"{file}.png", figure, dpi=110)
    numbers = print_of | {
        "dataset": name,
        "uninformed": floor,
        "suggestions": [vars(one) for one in advice],
        "twins": len(found),
        "twins_across_splits": len(across),
        "contradictions": len(contrary),
    }
    write_text(folder / "fingerprint.json", json.dumps(plain(numbers), indent=2, allow_nan=False) + "\n")
    write_text(folder / "twins.csv", leaks.twins_csv(found, data.placed()))
    write_text(folder / "description.md", words)
    write_table(folder / "images.csv", [one.row() for one in measured])
    print(words[: words.index("\n![")] if drawn else words)
    files = ["description.md", "fingerprint.json", "images.csv", "twins.csv", *(f"{file}.png" for file in drawn)]
    print(f"\nWritten to {os.path.relpath(folder)}: {', '.join(files)}")


def look_for_leaks(data: ImageMaskData, leaks_are: str, folder: Path) -> None:
    """Look for images of different splits that are nearly the same; write and draw them; warn or refuse, as asked.

    Args:
        data: Holds all splits.
        leaks_are: `warn`, `error`, or `ignore`, which does not look.
        folder: Where `leaks.csv` and `figures/leaks.png` go.

    Raises:
        BadInput: If some are found and they are an error.
    """
    if leaks_are == "ignore" or rank_zero_only.rank != 0:
        return
    placed = data.pictures()
    images = [picture.inside()[0] for _, picture in placed]
    found = leaks.twins(images, [split for split, _ in placed])
    if not found:
        return
    titles = [f"{split} {picture.name}" for split, picture in placed]
    write_text(folder / "leaks.csv", leaks.twins_csv(found, data.placed()))
    write_figure(folder / "figures" / "leaks.png", figures.twins(found, titles, images), dpi=120)
    tested = {index for pair in found for index in (pair.first, pair.second) if placed[index][0] == "test"}
    shown = "".join(f"\n  {titles[p.first]} is {titles[p.second]} ({p.likeness:.2f})" for p in found[:5])
    message = (
        f"{len(found)} pairs of images are nearly the same and in different splits; {len(tested)} of the "
        f"{len(data.splits['test'])} test images are in them:{shown}\n"
        "Scores will be too good, and moved frames of a video are mostly not found. See "
        f"{os.path.relpath(folder)}/leaks.csv and figures/leaks.png; give such images one "
        "group, or choose with leaks=warn|error|ignore."
    )
    if leaks_are == "error":
        raise BadInput(message)
    warnings.warn(message, stacklevel=2)
