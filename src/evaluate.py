"""Score a finished run again: `python src/evaluate.py run=outputs/runs/cvc/boundary_dou/<time>`."""

from raremask.commands import evaluate

if __name__ == "__main__":
    evaluate()
