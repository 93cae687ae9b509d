"""Time RecBole's SASRec with full cross-entropy; `benchmarks.training` runs this script in RecBole's own environment.

It reads a CSV of interactions, and prints a line of JSON: the seconds of every epoch, whose samples are prefixes with one target,
and of a full ranking of all users.
"""

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

for name in ("bool8", "float_", "complex_", "unicode_"):  # names of NumPy 1 that RecBole uses
    setattr(np, name, {"bool8": np.bool_, "float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}[name])

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.sequential_recommender import SASRec  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402


def main() -> None:
    file, epochs = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    root = Path(tempfile.mkdtemp())
    (root / "data").mkdir()
    lines = [line.split(",") for line in file.read_text().splitlines()[1:]]
    text = "user_id:token\titem_id:token\ttimestamp:float\n"
    text += "".join(f"{user}\t{item}\t{position}\n" for position, (user, item, _) in enumerate(lines))
    (root / "data/data.inter").write_text(text)
    settings = {
        "data_path": str(root),
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 10,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "hidden_size": 128,
        "inner_size": 128,
        "n_layers": 2,
        "n_heads": 1,
        "train_batch_size": 256,
        "eval_batch_size": 256,
        "epochs": epochs,
        "use_gpu": False,
        "show_progress": False,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "checkpoint_dir": str(root),
        "metrics": ["NDCG", "Hit"],
        "topk": [10, 20],
        "valid_metric": "NDCG@20",
    }
    sys.argv = sys.argv[:1]
    config = Config(model="SASRec", dataset="data", config_dict=settings)
    logging.disable(logging.INFO)
    train, valid, _ = data_preparation(config, create_dataset(config))
    model = SASRec(config, train.dataset)
    trainer = Trainer(config, model)
    seconds = []
    for epoch in range(epochs):
        start = time.perf_counter()
        trainer._train_epoch(train, epoch)
        seconds.append(time.perf_counter() - start)
    ranking = []
    for _ in range(4):  # the first warms up
        start = time.perf_counter()
        trainer.evaluate(valid, load_best_model=False)
        ranking.append(time.perf_counter() - start)
    print(json.dumps({"epoch": seconds, "ranking": median(ranking[1:])}))


main()
