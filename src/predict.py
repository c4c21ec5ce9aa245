"""Predict masks for new images: `python src/predict.py run=<folder of a run> images=<folder> out=<folder>`."""

from raremask.commands import predict

if __name__ == "__main__":
    predict()
