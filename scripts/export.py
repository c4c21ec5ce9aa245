"""Write the model of a run as one file that other programs can use, and compare the two.

    python scripts/export.py run=outputs/runs/cvc/boundary_dou/<time> format=onnx

Settings: run=<folder of a run or model> format=onnx|torch_export out=<file>; without `out` the file stands beside the
model. How images are prepared and masks are made stands in the file's metadata, under `raremask`.
"""

import sys
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from raremask import BadInput, shipped
from raremask.building import network


def main(arguments: list[str]) -> str:
    """Write what the command line asks for, and say how near it comes.

    Raises:
        BadInput: If a setting is unknown, missing or wrong, or the file is there already.
    """
    cfg = OmegaConf.create({"run": "???", "format": "???", "out": None})
    OmegaConf.set_struct(cfg, True)
    try:
        cfg = OmegaConf.merge(cfg, OmegaConf.from_cli(arguments))
        run, kind = Path(str(cfg.run)), cfg.format
    except OmegaConfBaseException as error:
        kinds = " or ".join(shipped.SUFFIXES)
        raise BadInput(f"{str(error).splitlines()[0]}. Settings: run, format ({kinds}), out.") from error
    if kind not in shipped.SUFFIXES:
        raise BadInput(f"format must be {' or '.join(shipped.SUFFIXES)}; got {kind}")
    place = shipped.find(run)
    if place.is_file():
        raise BadInput(f"{place} is exported already; name the folder of a run or model.")
    file = Path(str(cfg.out)) if cfg.out else place / f"model{shipped.SUFFIXES[kind]}"
    if file.suffix != shipped.SUFFIXES[kind]:
        raise BadInput(f"out={file}: {kind} files end in {shipped.SUFFIXES[kind]}")
    if file.exists():
        raise BadInput(f"{file} is there already; name another with out=")
    model = shipped.read(place)
    difference = shipped.export(model, network(place, model), kind, file)
    return f"{file}: {file.stat().st_size / 2**20:.1f} MiB; largest difference of a probability: {difference:.2g}"


if __name__ == "__main__":
    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0)
    try:
        print(main(sys.argv[1:]))
    except BadInput as error:
        sys.exit(f"{error}")
