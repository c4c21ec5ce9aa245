"""Compare finished runs: `python src/compare.py runs=outputs/sweeps/<name>`."""

import hydra
from omegaconf import DictConfig

from raremask import commandline


@hydra.main(version_base="1.3", config_path="../conf", config_name="compare")
def main(cfg: DictConfig) -> None:
    """Write the report, and print its headline."""
    commandline.check_compare(cfg)
    from raremask.run import compare  # after the command line has been judged: torch takes seconds

    compare(cfg)


if __name__ == "__main__":
    with commandline.plain_errors():
        main()
