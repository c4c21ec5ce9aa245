"""Search for better settings: `python src/tune.py dataset=cvc loss=tversky trials=20`."""

import hydra
from omegaconf import DictConfig

from raremask import commandline


@hydra.main(version_base="1.3", config_path="../conf", config_name="tune")
def main(cfg: DictConfig) -> float:
    """Return the best score."""
    commandline.check_tune(cfg)
    from raremask.run import tune  # after the command line has been judged: torch takes seconds

    return tune(cfg)


if __name__ == "__main__":
    with commandline.plain_errors():
        main()
