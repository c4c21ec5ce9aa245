"""Compare finished runs: `python src/compare.py runs=outputs/sweeps/<name>`."""

from raremask.commands import compare

if __name__ == "__main__":
    compare()
