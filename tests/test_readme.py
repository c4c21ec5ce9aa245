"""The commands of the README and of the pages beside it are tried; what they list is compared with what is there."""

import re
import runpy
import shlex

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from conftest import ROOT, colour, saved, square
from raremask import (
    commandline,  # noqa: F401  registers the resolvers
    nets,
)
from raremask.data.splits import Split
from raremask.losses import check_loss, overlap
from raremask.metrics.image import measure

TEXT = (ROOT / "README.md").read_text()
WRITTEN = ("start", "how-to", "reference", "why", "results")  # the other pages are made by scripts
FILES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in WRITTEN)]
PAGES = {path.name: path.read_text() for path in FILES}
COMMANDS = re.findall(
    r"^ {4}(?:OMP_NUM_THREADS=1 )?python src/(train|evaluate|describe|predict|compare|tune)\.py ?([^#\n]*)",
    "\n".join(PAGES.values()),
    re.MULTILINE,
)
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_somewhere(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for link, anchor in re.findall(r"\]\(([^)#:]*)#?([\w-]*)\)", PAGES[page]):
        assert not link or (folder / link).exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (folder / link).read_text() if link else PAGES[page], re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}  # GitHub's
            assert anchor in anchors, anchor


def test_a_script_of_the_pages_is_there():
    scripts = set(re.findall(r"scripts/\w+\.\w+", "".join(PAGES.values())))
    assert scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", [FILES[0], *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.stem)
def test_brackets_are_quoted_as_zsh_wants_them(page):
    for command in re.findall(r"^ {4}(?:\w+=\S+ )?(python .*)$", page.read_text(), re.MULTILINE):
        assert not [word for word in command.split() if "[" in word and word[0] != '"'], command


def test_every_command_is_shown():
    assert {script for script, _ in COMMANDS} == {path.stem for path in (ROOT / "src").glob("*.py")}


@pytest.mark.parametrize(("script", "arguments"), dict.fromkeys(COMMANDS), ids=lambda value: value.strip())
def test_a_command_of_the_pages_is_understood(script, arguments):
    overrides = [argument for argument in shlex.split(arguments) if argument != "-m"]
    overrides = [override for override in overrides if "glob(" not in override]  # every choice: test_conf composes each
    split = [override.partition("=") for override in overrides]
    values = {key: re.split(r",(?![^\[]*\])", value) for key, _, value in split}  # -m a=1,2 b=3,4
    first = {key: options[0] for key, options in values.items()}
    choices = [first, *(first | {key: option} for key, options in values.items() for option in options[1:])]
    choices = [[f"{key}={value}" for key, value in chosen.items()] for chosen in choices]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for chosen in choices:
            if "<" not in arguments:
                compose(script, chosen)
            else:  # `<time>` stands for a folder; quoted, or Hydra would parse the brackets
                compose(script, [f"{key}='{value}'" for key, _, value in (item.partition("=") for item in chosen)])


def test_the_table_of_groups_lists_only_what_there_is():
    reference = PAGES["reference.md"]
    table = reference[reference.index("| group | choices |") : reference.index("## A run's folder")]
    listed = set(re.findall(r"`(\w+)`", table))
    choices = {path.stem for path in (ROOT / "conf").glob("*/**/*.yaml")}
    groups = {path.name for path in (ROOT / "conf").glob("*/")}
    assert groups <= listed
    assert listed <= choices | groups  # a choice of your own need not be listed


def test_the_scores_listed_are_those_of_an_image():
    reference = PAGES["reference.md"]
    section = reference[reference.index("## Scores") : reference.index("## Exit codes")].partition(
        "where more is better:"
    )
    listed = set(re.findall(r"`(\w+)`", section[2])) - {"_fov", "_default"}
    image = np.zeros((4, 4))
    assert listed == set(measure(image, image > 0, image > 0)[""].scores)


def test_every_room_stands_under_how_it_is_built():
    built = TEXT[TEXT.index("## How it is built") : TEXT.index("**A mask's way.**")]
    rooms = {path.name for path in (ROOT / "src" / "raremask").iterdir() if path.name[0] != "_"} - {"py.typed"}
    for room in rooms:
        assert room in built


def test_the_example_of_a_new_loss_keeps_the_contract():
    room = dict(vars(overlap))  # as if it stood at the end of that file
    exec(BLOCKS[0], room)
    recall = room["Recall"](smooth=1.0)
    assert isinstance(recall, torch.nn.Module)
    assert check_loss(recall).broken == []
    assert "_target_: raremask.losses.overlap.Recall\nsmooth: 1.0" in TEXT


def test_the_example_of_a_new_dataset_is_read(tmp_path):
    for index in range(10):
        saved(tmp_path / "images" / f"{index}.jpg", colour())
        saved(tmp_path / "masks" / f"{index}.jpg", square())
    room = {}
    exec(BLOCKS[1].replace("1000, ", "10, "), room)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        inherited = compose("train", ["dataset=isic2018"]).dataset
    settings = {key: value for key, value in inherited.items() if key not in ("_target_", "root", "size", "workers")}
    data = room["Kvasir"](str(tmp_path), size=(24, 30), workers=0, augment=None, split=Split(), seed=0, **settings)
    data.setup()
    assert sum(len(split) for split in data.splits.values()) == 10


def test_the_example_of_a_new_network_gives_logits():
    room = dict(vars(nets))
    exec(BLOCKS[2], room)
    assert room["Pixelwise"](in_channels=3, width=4)(torch.rand(2, 3, 17, 9)).shape == (2, 1, 17, 9)


def test_the_page_of_the_losses_is_what_docstrings_configs_and_the_contract_make_of_it():
    script = runpy.run_path(str(ROOT / "scripts" / "document_losses.py"))
    expected = "python scripts/document_losses.py writes it anew"
    assert (ROOT / "docs" / "losses.md").read_text() == script["page"](), expected


def test_pins_name_packages_and_no_host():
    pins = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"https?:|--index|--find-links|@ ", pins)
    for name in ("torch", "torchvision", "lightning", "hydra-core", "albumentations"):
        assert re.search(rf"^{name}==\d", pins, re.MULTILINE)
