"""RecTools' SASRec with sampled softmax on a CSV of interactions; run by `benchmarks.training` in RecTools' own environment.

Prints a line of JSON: CPU seconds of every epoch and of recommending 20 items to every user.
"""

import json
import sys
import time

import pandas as pd
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

EPOCHS: list[float] = []  # the trainer, callbacks included, is copied


class Clock(Callback):
    def on_train_epoch_start(self, *_: object) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, *_: object) -> None:
        EPOCHS.append(time.process_time() - self.start)


def main() -> None:
    file, epochs = sys.argv[1], int(sys.argv[2])
    frame = pd.read_csv(file)
    model = SASRecModel(
        loss="sampled_softmax",
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
    start = time.process_time()
    model.recommend(users=frame["user"].unique(), dataset=dataset, k=20, filter_viewed=False)
    print(json.dumps({"epoch": EPOCHS, "ranking": time.process_time() - start}))


main()
