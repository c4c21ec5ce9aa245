"""The commands of the README and of the pages beside it are tried; what they list is compared with what is there."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from conftest import ROOT, colour, saved, square
from raremask import (
    commandline,  # noqa: F401  registers the resolvers
    nets,
)
from raremask.data.splits import Split
from raremask.losses import check_loss, overlap
from raremask.metrics.image import score_image

TEXT = (ROOT / "README.md").read_text()
WRITTEN = ("start", "how-to", "reference", "why", "results")  # the other pages are made by scripts
FILES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in WRITTEN)]
PAGES = {path.name: path.read_text() for path in FILES}
SCRIPTS = r"python src/(train|evaluate|describe|predict|compare|tune)\.py ?"


def recorded(text: str) -> str:
    """The commands of an experiment's record, each on a line as a page has it."""
    record = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))
    found = re.search(r"^ Command:(.*?)^ Hardware:", record, re.MULTILINE | re.DOTALL)
    lines = [line.partition("  # ")[0].strip() for line in found[1].splitlines()]
    return re.sub(r"^(?=python )", "    ", re.sub(r"\n(?!python )", " ", "\n".join(lines)), flags=re.MULTILINE)


RECORDS = {path.stem: recorded(path.read_text()) for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml"))}
SHOWN = "\n".join([*PAGES.values(), *RECORDS.values()])
COMMANDS = re.findall(rf"^ {{4}}(?:OMP_NUM_THREADS=1 )?{SCRIPTS}([^#\n]*)", SHOWN, re.MULTILINE)
COMMANDS += re.findall(rf"`{SCRIPTS}([^`]*)`", SHOWN)  # within a sentence, or a table
VARIABLES = dict(re.findall(r"^ {4}([A-Z]+)=([\w,]+)$", SHOWN, re.MULTILINE))
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
CHOICES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


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
    shown = "\n".join([page.read_text(), *RECORDS.values()])
    for command in re.findall(r"(?:^ {4}(?:\w+=\S+ )?|`)(python [^`\n]*)", shown, re.MULTILINE):
        assert not [word for word in command.split() if "[" in word and word[0] != '"'], command


def test_every_command_is_shown():
    assert {script for script, _ in COMMANDS} == {path.stem for path in (ROOT / "src").glob("*.py")}


@pytest.fixture(scope="module")
def with_examples(tmp_path_factory):
    """Return the override that adds the choices that README shows whole, as if they lay in conf/."""
    folder = tmp_path_factory.mktemp("conf")
    names = ("loss/recall", "dataset/kvasir", "model/unetplusplus", "model/pixelwise")
    for name, text in zip(names, CHOICES, strict=True):
        path = folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return f"hydra.searchpath=[file://{folder}]"


@pytest.mark.parametrize(("script", "arguments"), dict.fromkeys(COMMANDS), ids=lambda value: value.strip())
def test_a_command_of_the_pages_is_understood(script, arguments, with_examples):
    for name, value in VARIABLES.items():
        arguments = arguments.replace(f"${name}", value)
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
                compose(script, [*chosen, with_examples])
            else:  # `<time>` stands for a folder; quoted, or Hydra would parse the brackets
                compose(script, [f"{key}='{value}'" for key, _, value in (item.partition("=") for item in chosen)])


def test_the_section_on_your_own_data_works_as_typed(tmp_path):
    section = TEXT[TEXT.index("## Your own data") : TEXT.index("All of it took")]
    typed = [line for line in re.findall(r"^ {4}(.*)$", section, re.MULTILINE) if not line.startswith("source ")]
    assert typed.pop() == "tensorboard --logdir outputs"  # which would stay
    shorter = {"images=60": "images=12", "seed=0,1,2": "seed=0", "trainer.max_epochs=20": "trainer.max_epochs=1"}
    script = "set -e\n" + "\n".join(typed)
    for long, short in shorter.items():
        assert long in script
        script = script.replace(long, short)
    for folder in ("src", "scripts"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert len(list((tmp_path / "outputs" / "mine").glob("*.png"))) == 12
    assert (tmp_path / "outputs" / "sweeps" / "mine" / "report" / "index.html").is_file()
    assert list((tmp_path / "outputs").glob("sweeps/mine/*/tensorboard/events*"))


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
    assert listed == set(score_image(image, image > 0, image > 0)[""].scores)


def test_every_room_stands_under_how_it_is_built():
    built = TEXT[TEXT.index("## How it is built") : TEXT.index("**A mask's way.**")]
    rooms = {path.name for path in (ROOT / "src" / "raremask").iterdir() if path.name[0] != "_"} - {"py.typed"}
    for room in rooms:
        assert room in built


def test_the_example_of_a_new_loss_keeps_the_contract(with_examples, monkeypatch):
    room = dict(vars(overlap))  # as if it stood at the end of that file
    exec(BLOCKS[0], room)
    recall = room["Recall"](smooth=1.0)
    assert isinstance(recall, torch.nn.Module)
    assert check_loss(recall).broken == []
    monkeypatch.setattr(overlap, "Recall", room["Recall"], raising=False)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        chosen = instantiate(compose("train", ["loss=recall", with_examples]).loss)
    assert (type(chosen), chosen.smooth) == (room["Recall"], 1.0)


def test_the_example_of_a_new_dataset_is_read(tmp_path, with_examples):
    for index in range(10):
        saved(tmp_path / "images" / f"{index}.jpg", colour())
        saved(tmp_path / "masks" / f"{index}.jpg", square())
    room = {}
    exec(BLOCKS[1].replace("1000, ", "10, "), room)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        chosen = compose("train", ["dataset=kvasir", with_examples]).dataset
    assert (chosen._target_, chosen.root.split("/")[-1]) == ("raremask.data.kvasir.Kvasir", "Kvasir-SEG")
    settings = {key: value for key, value in chosen.items() if key not in ("_target_", "root", "size", "workers")}
    data = room["Kvasir"](str(tmp_path), size=(24, 30), workers=0, augment=None, split=Split(), seed=0, **settings)
    data.setup()
    assert sum(len(split) for split in data.splits.values()) == 10


def test_the_example_of_a_new_network_gives_logits(with_examples, monkeypatch):
    room = dict(vars(nets))
    exec(BLOCKS[2], room)
    monkeypatch.setattr(nets, "Pixelwise", room["Pixelwise"], raising=False)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        network = instantiate(compose("train", ["model=pixelwise", with_examples]).model)
        other = compose("train", ["model=unetplusplus", with_examples]).model
    assert network(torch.rand(2, 3, 17, 9)).shape == (2, 1, 17, 9)
    other.encoder_weights = None  # tests download nothing
    assert type(instantiate(other).net).__name__ == "UnetPlusPlus"


def test_the_page_of_the_losses_is_what_docstrings_configs_and_the_contract_make_of_it():
    script = runpy.run_path(str(ROOT / "scripts" / "document_losses.py"))
    expected = "python scripts/document_losses.py writes it anew"
    assert (ROOT / "docs" / "losses.md").read_text() == script["page"](), expected


def test_pins_name_packages_and_no_host():
    pins = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"https?:|--index|--find-links|@ ", pins)
    for name in ("torch", "torchvision", "lightning", "hydra-core", "albumentations"):
        assert re.search(rf"^{name}==\d", pins, re.MULTILINE)
