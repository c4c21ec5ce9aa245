"""Train a network: `python src/train.py dataset=cvc loss=boundary_dou`; every choice is a file below `conf/`."""

import hydra
from omegaconf import DictConfig

from raremask import commandline


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Return the best monitored score, so that a sweeper can compare runs."""
    commandline.check(cfg)
    from raremask.run import train  # after the command line has been judged: torch takes seconds

    return train(cfg)


if __name__ == "__main__":
    with commandline.plain_errors():
        main()
