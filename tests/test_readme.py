"""The README's commands are tried, and what it lists is compared with what is there."""

import re
import runpy

import pytest
import torch
from hydra import compose, initialize_config_dir

from conftest import ROOT
from raremask import commandline  # noqa: F401  registers the resolvers
from raremask.losses import check_loss, overlap

TEXT = (ROOT / "README.md").read_text()
COMMANDS = re.findall(
    r"^ {4}python src/(train|evaluate|describe|predict|compare|tune)\.py ?([^#\n]*)", TEXT, re.MULTILINE
)


def test_the_readme_shows_commands():
    assert len(COMMANDS) == 16


@pytest.mark.parametrize(("script", "arguments"), COMMANDS, ids=lambda value: value.strip())
def test_a_command_of_the_readme_is_understood(script, arguments):
    overrides = [argument for argument in arguments.split() if argument != "-m"]
    overrides = [override for override in overrides if "glob(" not in override]  # every choice: test_conf composes each
    choices = [[]]
    for override in overrides:  # -m a=1,2 b=3,4: every combination
        key, _, values = override.partition("=")
        choices = [[*chosen, f"{key}={value}"] for chosen in choices for value in values.split(",")]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for chosen in choices:
            if "<" not in arguments:
                compose(script, chosen)
            else:  # `<time>` stands for a folder; quoted, or Hydra would parse the brackets
                compose(script, [f"{key}='{value}'" for key, _, value in (item.partition("=") for item in chosen)])


def test_the_table_of_groups_lists_only_what_there_is():
    table = TEXT[TEXT.index("| group | choices |") : TEXT.index("### Datasets")]
    listed = set(re.findall(r"`(\w+)`", table))
    choices = {path.stem for path in (ROOT / "conf").glob("*/**/*.yaml")}
    groups = {path.name for path in (ROOT / "conf").glob("*/")}
    assert groups <= listed
    assert listed <= choices | groups  # a choice of your own need not be listed


def test_every_room_stands_under_how_it_is_built():
    built = TEXT[TEXT.index("## How it is built") : TEXT.index("**A mask's way.**")]
    rooms = {path.name for path in (ROOT / "src" / "raremask").iterdir() if path.name[0] != "_"} - {"py.typed"}
    for room in rooms:
        assert room in built


def test_the_example_of_a_new_loss_keeps_the_contract():
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]
    room = dict(vars(overlap))  # as if it stood at the end of that file
    exec(code, room)
    recall = room["Recall"](smooth=1.0)
    assert isinstance(recall, torch.nn.Module)
    assert check_loss(recall).broken == []
    assert "_target_: raremask.losses.overlap.Recall\nsmooth: 1.0" in TEXT


def test_the_page_of_the_losses_is_what_docstrings_configs_and_the_contract_make_of_it():
    script = runpy.run_path(str(ROOT / "scripts" / "document_losses.py"))
    expected = "python scripts/document_losses.py writes it anew"
    assert (ROOT / "docs" / "losses.md").read_text() == script["page"](), expected


def test_pins_name_packages_and_no_host():
    pins = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"https?:|--index|--find-links|@ ", pins)
    for name in ("torch", "torchvision", "lightning", "hydra-core", "albumentations"):
        assert re.search(rf"^{name}==\d", pins, re.MULTILINE)
