"""Look at a dataset before training: `python src/describe.py dataset=drive`."""

from raremask.commands import describe

if __name__ == "__main__":
    describe()
