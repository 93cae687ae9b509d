"""Time RecTools' SASRec; `benchmarks.training` runs this script in RecTools' own environment.

It reads a CSV of interactions, and prints a line of JSON: the seconds of every epoch, and of recommending 20 items to all users.
"""

import json
import sys
import time
from statistics import median

import pandas as pd
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

EPOCHS: list[float] = []  # global, because RecTools copies the trainer with its callbacks


class Clock(Callback):
    def on_train_epoch_start(self, *_: object) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, *_: object) -> None:
        EPOCHS.append(time.perf_counter() - self.start)


def main() -> None:
    file, epochs = sys.argv[1], int(sys.argv[2])
    loss = sys.argv[3] if len(sys.argv) > 3 else "sampled_softmax"
    frame = pd.read_csv(file)
    model = SASRecModel(
        loss=loss,
        n_negatives=64,
        session_max_len=10,
        n_factors=128,
        n_blocks=2,
        n_heads=1,
        batch_size=256,
        epochs=epochs,
        verbose=0,
        get_trainer_func=lambda: Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[Clock()],
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        ),
    )
    names = {"user": Columns.User, "item": Columns.Item, "time": Columns.Datetime}
    dataset = Dataset.construct(frame.rename(columns=names).assign(weight=1))
    model.fit(dataset)
    ranking = []
    for _ in range(4):  # the first warms up
        start = time.perf_counter()
        model.recommend(users=frame["user"].unique(), dataset=dataset, k=20, filter_viewed=False)
        ranking.append(time.perf_counter() - start)
    print(json.dumps({"epoch": EPOCHS, "ranking": median(ranking[1:])}))


main()
