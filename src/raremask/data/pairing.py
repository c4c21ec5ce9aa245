"""Finds the mask of each image by its name."""

import csv
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from raremask import BadInput
from raremask.tables import as_it_was

KINDS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
ENDINGS = ("", "_mask", "_segmentation")  # what may follow an image's stem in the name of its mask
CHANNEL = "_0000"  # what nnU-Net appends to the name of an image: its first channel
SHOWN = 10  # names in a message
BELOW = "name one of those folders; to train on all, write a table (dataset.pairs), perhaps with the folder as group"


def pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Pair the images of a folder with the masks of a folder, which may be the same one.

    A mask is called like its image, or that and `_mask` or `_segmentation`; of an image as nnU-Net names it, without
    its `_0000`. The kinds of file may differ, and so may how the letters of a name are encoded (macOS writes accents as
    letters of their own). Hidden files and files that are no images are passed over.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.

    Returns:
        Image and mask of each pair, sorted by name.

    Raises:
        BadInput: If a folder has no image, an image no mask or several, or names differ in nothing but case or kind.
    """
    pictures, drawn = pictures_of(images), pictures_of(masks)
    if images.resolve() == masks.resolve():
        pictures = [path for path in pictures if not path.stem.endswith(ENDINGS[1:])]
        drawn = [path for path in drawn if path.stem.endswith(ENDINGS[1:])]
        if not drawn:
            raise BadInput(
                f"{images} is named for images and for masks, and no file's name in it ends in "
                f"{' or '.join(ENDINGS[1:])}. Name the folder of the masks."
            )
    problems = [*_alike(pictures), *_alike(drawn)]
    by_stem = {composed(path.stem): path for path in drawn}
    found = []
    for picture in pictures:
        stem = composed(picture.stem)
        stems = dict.fromkeys((stem, stem.removesuffix(CHANNEL)))
        fitting = [by_stem[one + ending] for one in stems for ending in ENDINGS if one + ending in by_stem]
        if len(fitting) == 1:
            found.append((picture, fitting[0]))
        else:
            got = ", ".join(path.name for path in fitting) or f"none of {picture.stem}[_mask|_segmentation].* there"
            problems.append(f"{picture}: one mask is needed in {masks}; got {got}")
    otherwise = "Files of other names are paired by a table (dataset.pairs); no foreground needs a black mask."
    _refuse(problems, f"images in {images} and masks in {masks} do not pair. {otherwise}")
    left = sorted({path.name for path in drawn} - {mask.name for _, mask in found})
    other = sorted(
        path.name
        for path in {*images.iterdir(), *masks.iterdir()}
        if path.is_file() and path.name[0] != "." and path.suffix.lower() not in KINDS
    )
    for names, what in ((left, f"masks in {masks} belong to no image"), (other, "files are of no known kind")):
        if names:
            warnings.warn(f"{len(names)} {what}, such as {', '.join(names[:3])}; they are left out.", stacklevel=4)
    return found


def without_masks(pictures: Sequence[Path]) -> list[Path]:
    """Leave out what is called like the mask of another of these images, and say so."""
    stems = {composed(path.stem) for path in pictures}
    marks = [(path, ending) for path in pictures for ending in ENDINGS[1:] if path.stem.endswith(ending)]
    masks = {path: None for path, ending in marks if composed(path.stem).removesuffix(ending) in stems}
    if masks:
        first = next(iter(masks))
        warnings.warn(
            f"{len(masks)} files in {first.parent} are called like masks of others, such as {first.name}; they are "
            "left out.",
            stacklevel=4,
        )
    return [path for path in pictures if path not in masks]


def read_pairs(path: Path) -> list[dict[str, str]]:
    """Read a CSV table of pairs: columns `image` and `mask`, perhaps `valid`, `group` and `split`.

    Args:
        path: The table, UTF-8; files are named from its own folder. Spaces around a cell are none of it, unless a file
            is called so.

    Returns:
        A row for each pair; files as full paths, `name` as the image is written in the table.

    Raises:
        BadInput: If the table cannot be read, has other columns, a row without one of its files, or an image twice.
    """
    rows = read_csv(path, needed=("image", "mask"), perhaps=("valid", "group", "split"))
    files: list[str] = [column for column in ("image", "mask", "valid") if column in rows[0]]
    problems, seen = [], set()
    for number, row in enumerate(rows, start=2):
        if any("\0" in row[column] for column in files):
            problems.append(f"line {number}: no file can have a name with a null byte")
            continue
        for column in files:
            row[column] = _as_it_is_there(path.parent, row[column])
        for column, cell in row.items():  # "p1 " and "p1" are one patient
            bare = cell.strip()
            if bare != cell and (column not in files or not (path.parent / cell).is_file()):
                row[column] = bare
        file = (path.parent / row["image"]).resolve()
        if missing := [column for column in files if not row[column]]:
            problems.append(f"line {number} has no {' and no '.join(missing)}")
        elif file in seen:
            problems.append(f"line {number}: {row['image']} stands there twice")
        seen.add(file)
    _refuse(problems, f"{path} cannot be used")
    return [row | {"name": row["image"]} | {key: str(path.parent / row[key]) for key in files} for row in rows]


def read_csv(path: Path, needed: Sequence[str] = (), perhaps: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Read a table with a line of column names.

    Args:
        path: CSV, UTF-8, with commas, or semicolons as some spreadsheets write it; the case of column names is ignored,
            and so are columns without a name (pandas' index) and lines without anything in them.
        needed: Columns that it must have.
        perhaps: Other columns that it may have; None allows any.

    Returns:
        A dictionary for each line; at least one.

    Raises:
        BadInput: If the file cannot be read, has other columns or one twice, no line below the names, or a line with
            another number of cells.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            mark = ";" if ";" in first and "," not in first else ","
            names = next(csv.reader([first.strip()], delimiter=mark, strict=True), [])
            places = [name.strip().lower() for name in names]
            columns = [name for name in places if name]
            lines = list(csv.reader(file, delimiter=mark, strict=True)) if columns else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    if not set(needed) <= set(columns) or not (perhaps is None or set(columns) <= {*needed, *perhaps}):
        more = f" and perhaps {', '.join(perhaps)}" if perhaps else ""
        raise BadInput(f"{path}: columns must be {', '.join(needed)}{more}; got {', '.join(columns) or 'none'}.")
    if len(set(columns)) < len(columns):
        raise BadInput(f"{path}: a column stands there twice; got {', '.join(columns)}.")
    filled = [(number, cells) for number, cells in enumerate(lines, start=2) if "".join(cells).strip()]
    if not filled:
        raise BadInput(f"{path}: has no line below the names of its columns.")
    for number, cells in filled:
        if len(cells) != len(places):
            more = "; was the file cut off?" if len(cells) < len(places) else ". A comma in a cell needs quotes."
            raise BadInput(f"{path}: line {number}: cells {len(cells)}, columns {len(places)}{more}")
    return [
        {column: as_it_was(cell) for column, cell in zip(places, cells, strict=True) if column} for _, cells in filled
    ]


def pictures_of(folder: Path) -> list[Path]:
    """List the images of a folder, sorted by name; hidden files, other kinds and folders in it are passed over.

    Raises:
        BadInput: If there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        seen_from = "" if folder.is_absolute() else f" (seen from {Path.cwd()})"
        raise BadInput(f"{folder}: no such folder{seen_from}")
    found = [path for path in (*folder.iterdir(), *folder.glob("*/*")) if path.suffix.lower() in KINDS]
    hidden = (".", "__MACOSX")  # notebooks leave .ipynb_checkpoints
    found = sorted(
        path
        for path in found
        if path.is_file() and not any(part.startswith(hidden) for part in path.relative_to(folder).parts)
    )
    here = [path for path in found if path.parent == folder]
    below = [path.relative_to(folder).as_posix() for path in found if path.parent != folder]
    if not here:
        more = f" There are {len(below)} in folders in it, such as {below[0]}: {BELOW}." if below else ""
        raise BadInput(f"{folder} holds no image; known are {', '.join(KINDS)}.{more}")
    if below:
        warnings.warn(
            f"{len(below)} images in folders in {folder}, such as {below[0]}, are left out: {BELOW}.", stacklevel=4
        )
    return here


def _alike(paths: Iterable[Path]) -> list[str]:
    """What is wrong with names that differ only in case or kind: on other machines they are one file."""
    same = defaultdict(list)
    for path in paths:
        same[composed(path.stem).lower()].append(path.name)
    return [f"{', '.join(names)}: names must differ in more than case and kind" for names in same.values() if names[1:]]


def _as_it_is_there(folder: Path, name: str) -> str:
    """The name of a file in a folder, with its letters encoded as the file has them, and slashes as here."""
    if "\\" in name and not (folder / name).exists():  # a table from Windows
        name = name.replace("\\", "/")
    if name and "\0" not in name and not (folder / name).exists() and (folder / name).parent.is_dir():
        for path in (folder / name).parent.iterdir():
            if composed(path.name) == composed(Path(name).name):
                return str(Path(name).with_name(path.name))
    return name


def composed(name: str) -> str:
    """A name as Linux and Windows write it, with an accent and its letter in one."""
    return unicodedata.normalize("NFC", name)


def _refuse(problems: list[str], what: str) -> None:
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise BadInput(f"{what}:\n" + "\n".join(f"  {problem}" for problem in problems[:SHOWN]) + more)
