"""Train a network: `python src/train.py dataset=cvc loss=boundary_dou`; every choice is a file below `conf/`."""

from raremask.commands import train

if __name__ == "__main__":
    train()
