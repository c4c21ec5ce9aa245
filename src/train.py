"""Train a network: `python src/train.py dataset=cvc loss=boundary_dou`; every choice is a file below `conf/`."""

import hydra
from omegaconf import DictConfig

from raremask import commandline, sweeps


def train(cfg: DictConfig, resume: bool = False) -> float:
    """Train; torch is imported only now, after the command line has been judged: it takes seconds."""
    from raremask.training import train

    return train(cfg, resume)


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Return the best monitored score, so that a sweeper can compare runs."""
    if sweeps.is_job():
        return sweeps.run(cfg, train)
    commandline.check(cfg)
    return train(cfg, not cfg.resume and sweeps.goes_on(cfg))


if __name__ == "__main__":
    with commandline.plain_errors(), sweeps.told():
        main()
