"""Search for better settings: `python src/tune.py dataset=cvc loss=tversky trials=20`."""

from raremask.commands import tune

if __name__ == "__main__":
    tune()
