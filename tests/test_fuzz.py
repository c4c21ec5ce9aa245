"""Random and randomly damaged input: what comes back is the expected answer, or a clear error of our own.

`make test` tries a few hundred inputs of each kind, `pytest -m long` 100,000 in all.
"""

import io
import json
import random
import shutil
import warnings
from contextlib import suppress

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from conftest import ROOT
from raremask import BadInput, receipt, scoring, shipped
from raremask.building import load_config
from raremask.data.pairing import read_csv, read_pairs
from raremask.data.readers import read_image, read_mask
from raremask.data.splits import Split
from raremask.runfolder import read_status
from raremask.runlengths import RunLengths
from raremask.submission import problems
from raremask.tables import read_table

SECTION = "Random input"
SPECIAL = [b"\0", b"\xff", b"0", b"-1", b"1e999", b"nan", b"\n", b",", b'"', b": ", b"${", b"[", b"9" * 20]


def tries(number: int):
    """Run a test with a few inputs always, and with so many in the long run."""
    return pytest.mark.parametrize("number", [min(300, number // 50), pytest.param(number, marks=pytest.mark.long)])


@pytest.fixture
def tried(tried):
    """Note what the long run has tried; the short one tries the same with less."""
    return lambda number, what, happened: tried(SECTION, what, happened) if number >= 10_000 else None


def fuzz(number: int, strategy, check) -> None:
    """Call `check` with so many inputs."""
    relaxed = settings(max_examples=number, suppress_health_check=list(HealthCheck), database=None, derandomize=False)
    relaxed(given(strategy)(check))()


def damaged(*whole: bytes):
    """A strategy: one of these, changed at up to eight places, or bytes that have nothing to do with them."""
    return st.integers(0, 2**63).map(lambda seed: damage(whole, random.Random(seed)))


def damage(whole: tuple[bytes, ...], chance: random.Random) -> bytes:
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(200))
    content = bytearray(chance.choice(whole))
    for _ in range(chance.randrange(9)):
        place = chance.randrange(len(content) + 1)
        end = min(len(content), place + chance.choice([1, 1, 2, 4, 30]))
        content[place:end] = chance.choice(
            [
                b"",
                chance.randbytes(end - place),
                bytes(content[place:end] * 2),
                chance.choice(SPECIAL),
            ]
        )
    return bytes(content[: chance.randrange(len(content) + 1)] if chance.random() < 0.1 else content)


# --- run lengths ------------------------------------------------------------------------------------------------------

STYLES = (RunLengths(), RunLengths("rows", 0, True, "-1"), RunLengths("columns", 1, False, "-"))


@tries(30_000)
def test_run_lengths(number, tried):
    text = st.one_of(
        st.text(), st.lists(st.integers(-5, 2**70), max_size=9).map(lambda pairs: " ".join(map(str, pairs)))
    )

    def check(text: str) -> None:
        for style in STYLES:
            try:
                mask = style.read(text, (5, 7))
            except ValueError:
                continue
            assert mask.shape == (5, 7)
            assert np.array_equal(style.read(style.write(mask), (5, 7)), mask)

    fuzz(number, text, check)
    tried(number, "run lengths: any text, any numbers", f"{number:,} texts, each in {len(STYLES)} styles")


# --- tables -----------------------------------------------------------------------------------------------------------


@tries(30_000)
def test_tables(number, tmp_path, tried):
    split = b"image,group,split\na,g,train\nb,h,val\nc,i,test\n"
    pairs = b"image,mask,group\na.png,a_mask.png,1\nb.png,b_mask.png,2\n"
    runs = b"img,pixels\n1,1 3 9 2\n2,\n3,5 1\n"
    nnunet = json.dumps([{"train": ["a", "b"], "val": ["c"]}] * 2).encode()
    scores = b"image,group,dice\na,1,0.5\n'=b,2,\n"
    (tmp_path / "sample.csv").write_bytes(runs)

    def check(content: bytes) -> None:
        for name in ("t.csv", "t.json"):
            (tmp_path / name).write_bytes(content)
        for call in (
            lambda: read_csv(tmp_path / "t.csv"),
            lambda: read_pairs(tmp_path / "t.csv"),
            lambda: read_table(tmp_path / "t.csv"),
            lambda: problems(tmp_path / "t.csv", tmp_path / "sample.csv", RunLengths(), (5, 7)),
            lambda: Split(file=str(tmp_path / "t.csv"))(list("abc"), list("ghi"), [None] * 3, [0.1] * 3),
            lambda: Split(file=str(tmp_path / "t.json"), fold=1)(list("abc"), list("ghi"), [None] * 3, [0.1] * 3),
        ):
            with suppress(BadInput):
                call()

    fuzz(number, damaged(split, pairs, runs, nnunet, scores), check)
    tried(number, "tables of pairs, splits, run lengths and scores, damaged", f"{number:,} files, each read in 6 ways")


# --- images -----------------------------------------------------------------------------------------------------------


def encoded(kind: str, **how) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    mask = np.where(pixels[..., 0] > 120, 255, 0).astype(np.uint8)
    buffer = io.BytesIO()
    if kind == "TIFF":
        tifffile.imwrite(buffer, pixels, **how)
    else:
        Image.fromarray(mask if kind == "GIF" else pixels).save(buffer, format=kind, **how)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")  # decoders warn of what they find; the answer counts
@tries(30_000)
def test_images(number, tmp_path, tried):
    kinds = [encoded(kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF")]
    kinds += [
        encoded("TIFF", compression="deflate"),
        encoded("TIFF", compression="lzw"),
        encoded("TIFF", tile=(16, 16)),
    ]
    file = tmp_path / "image"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        for read in (lambda: read_image(file, 3), lambda: read_mask(file)):
            with suppress(BadInput):
                pixels = read()
                assert pixels.dtype in (np.uint8, bool)
                assert pixels.size <= 3 * 80_000_000

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz(number, damaged(*kinds), check)
    tried(number, "PNG, JPEG, BMP, GIF and TIFF files, damaged", f"{number:,} files, each read as image and as mask")


# --- the files of a run -----------------------------------------------------------------------------------------------


@tries(10_000)
def test_configs_and_other_files_of_a_run(number, tmp_path, tried):
    loss = OmegaConf.load(ROOT / "conf" / "loss" / "bce_dice.yaml")
    config = {"seed": 1, "dataset": {"_target_": "raremask.data.phantom.Phantom", "size": [8, 8]}, "loss": loss}
    config |= {"split": {"_target_": "raremask.data.splits.Split", "fold": None, "file": None}}
    config |= {
        "model": {"_target_": "raremask.nets.UNet", "base": 4},
        "trainer": {"_target_": "lightning.pytorch.Trainer"},
    }
    config |= {"optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": "${seed}"}}
    config |= {"scheduler": {"_target_": "torch.optim.lr_scheduler.ConstantLR", "_partial_": True}}
    config |= {"augment": {"_target_": "raremask.data.augment.Augment", "steps": {}}, "callbacks": {}}
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    text = OmegaConf.to_yaml(config).encode()
    facts = {"state": "done", "started": "2026-01-01", "selection": {"threshold": 0.5}, "tile": None, "seed": 1}
    facts |= {"data": "a", "split": "b", "parts": [], "network": config["model"], "size": [8, 8], "resize": "stretch"}
    facts |= {"channels": 3, "bits": 16, "provenance": {}}
    facts = json.dumps(facts).encode()
    (run / ".hydra" / "config.yaml").write_bytes(text)
    load_config(run)  # whole, it is one
    assert shipped.Shipped.__dataclass_fields__.keys() <= json.loads(facts).keys()

    def check(both: tuple[bytes, bytes]) -> None:
        (run / ".hydra" / "config.yaml").write_bytes(both[0])
        for name in ("status.json", "selection.json", "receipt.json", "model.json", "auto.json"):
            (run / name).write_bytes(both[1])
        for call in (
            lambda: load_config(run),
            lambda: scoring.load_choice(run),
            lambda: receipt.read_receipt(run),
            lambda: shipped.read(run),
        ):
            with suppress(BadInput):
                call()
        assert "state" in read_status(run)

    fuzz(number, st.tuples(damaged(text), damaged(facts)), check)
    shutil.rmtree(run)
    tried(number, "the config and the JSON files of a run, damaged", f"{number:,} folders, each with 5 damaged files")
