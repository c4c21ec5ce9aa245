"""Look at a dataset before training: `python src/describe.py dataset=drive`."""

import hydra
from omegaconf import DictConfig

from raremask import commandline


@hydra.main(version_base="1.3", config_path="../conf", config_name="describe")
def main(cfg: DictConfig) -> None:
    """Print the description and write it."""
    commandline.check_dataset(cfg)
    from raremask.run import describe  # after the command line has been judged: torch takes seconds

    describe(cfg)


if __name__ == "__main__":
    with commandline.plain_errors():
        main()
