"""Score a finished run again: `python src/evaluate.py run=outputs/runs/cvc/boundary_dou/<time>`."""

import hydra
from omegaconf import DictConfig

from raremask import commandline


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(cfg: DictConfig) -> float:
    """Return the mean Dice, so that a script can use it."""
    commandline.check_evaluate(cfg)
    from raremask.run import evaluate  # after the command line has been judged: torch takes seconds

    return evaluate(cfg)


if __name__ == "__main__":
    with commandline.plain_errors():
        main()
