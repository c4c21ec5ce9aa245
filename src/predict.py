"""Predict masks for new images: `python src/predict.py run=<folder of a run> images=<folder> out=<folder>`."""

import sys

import hydra
from omegaconf import DictConfig

from raremask import commandline


@hydra.main(version_base="1.3", config_path="../conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Write the masks; exit with 1 if an image could not be read."""
    commandline.check_predict(cfg)
    from raremask.run import predict  # after the command line has been judged: torch takes seconds

    if predict(cfg):
        sys.exit(1)


if __name__ == "__main__":
    with commandline.plain_errors():
        main()
