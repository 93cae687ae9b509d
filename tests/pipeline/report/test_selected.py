"""The selected run beside the grid's cells, the paper's row and the run of the last commit."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.params import Evaluate
from pipeline.report.selected import committed_run, selected_lines
from tests.pipeline.report.values import BOTH, rows

RUN = {"dataset": "office", "encoder": "minilm", "backbone": "sasrec", "adapter": "spectran", "dim": "64", "seed": "3"}
TESTED = Evaluate(cutoffs=[20])


def committed(**changed: object) -> None:
    """Commit the metrics of a run with other choices than RUN, in the working directory."""
    metrics = json.dumps({"NDCG@20": 0.2}).encode()
    lock = {
        "train": {"params": {"params.yaml": RUN | {"dim": 64, "seed": 3} | changed}},
        "evaluate": {
            "deps": [{"path": "data/sequences/office", "md5": "1" * 32}, {"path": "data/sequences/demo", "md5": "2" * 32}],
            "params": {"params.yaml": {"evaluate": TESTED.model_dump()}},
            "outs": [
                {"path": "metrics/evaluation.json", "md5": hashlib.md5(metrics).hexdigest()},
                {"path": "data/ranks/selected.parquet", "md5": "0" * 32},
            ],
        },
    }
    Path("metrics").mkdir()
    Path("metrics/evaluation.json").write_bytes(metrics)
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": lock}))
    commit()


def commit() -> None:
    for command in ("init -q", "add -A", "-c user.name=t -c user.email=t@example.org commit -q -m state"):
        subprocess.run(["git", *command.split()], check=True)


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_run_of_the_last_commit_has_a_row_with_its_difference() -> None:
    committed(adapter="base", backbone="hstu", dim=128)
    before_it = hashlib.md5(Path("metrics/evaluation.json").read_bytes()).hexdigest()
    Path("metrics/evaluation.json").write_text("what the current run wrote")
    assert committed_run(RUN, TESTED) is None, "run by hand: dvc.lock does not say of which data it is"
    now = hashlib.md5(b"what the current run wrote").hexdigest()
    Path("dvc.lock").write_text(Path("dvc.lock").read_text().replace(before_it, now))
    before = committed_run(RUN, TESTED)
    assert before == ("last commit (base, hstu, dim 128, seed 3)", {"NDCG@20": 0.2})
    lines = selected_lines({"NDCG@20": 0.25}, RUN | {"dataset": "other"}, None, ["NDCG@20"], before)
    assert lines[1:] == [
        ["this run (spectran, dim 64, seed 3)", "0.2500", "–"],
        ["last commit (base, hstu, dim 128, seed 3)", "0.2000", "-20.0 %"],
    ]


def test_without_a_comparable_run_in_the_last_commit_there_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert committed_run(RUN, TESTED) is None, "no repository"
    committed()
    assert committed_run(RUN, TESTED) is not None
    assert committed_run(RUN | {"dataset": "demo"}, TESTED) is None, "another dataset"
    assert committed_run(RUN, TESTED.model_copy(update={"exclude_history": True})) is None, "tested in another way"
    lock = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text(lock.replace("1" * 32, "3" * 32))
    assert committed_run(RUN, TESTED) is None, "other data of the same name"
    Path("dvc.lock").write_text(lock)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert committed_run(RUN, TESTED) is None, "no git"
    Path("metrics/evaluation.json").write_text(json.dumps({"NDCG@20": 0.9}))
    commit()
    assert committed_run(RUN, TESTED) is None, "dvc.lock is of other metrics"
    for text in ("stages: 3", "[", ""):
        Path("dvc.lock").write_text(text)
        commit()
        assert committed_run(RUN, TESTED) is None
    Path("metrics/evaluation.json").unlink()
    commit()
    assert committed_run(RUN, TESTED) is None, "no metrics in the commit"


def test_the_selected_run_stands_among_the_grids_cells_and_above_the_papers_row() -> None:
    metrics = {"HR@10": 0.1, "NDCG@10": 0.05, "HR@20": 0.2, "NDCG@20": 0.25, "MRR": 0.03}
    header, *table = selected_lines(metrics, RUN, rows(BOTH), list(metrics))
    assert header == ["", "NDCG@20", "HR@20", "NDCG@10", "HR@10", "MRR", "to this run"]
    assert [(row[0], row[1], row[-1]) for row in table] == [
        ("grid: spectran, minilm, dim 16 (2 seeds)", "0.3300", "+32.0 %"),
        ("grid: alphafuse, minilm, dim 16 (2 seeds)", "0.3000", "+20.0 %"),
        ("this run (spectran, dim 64, seed 3)", "0.2500", "–"),
        ("grid: base, minilm, dim 16 (2 seeds)", "0.1500", "-40.0 %"),
        ("paper (LLaMA3-8B, dim 128)", "0.0612", "-75.5 %"),
    ], "sorted, and seeds are folded"
    assert table[0][5] == "–", "the cells hold no MRR here"
    assert len(selected_lines(metrics, RUN | {"dataset": "demo"}, None, list(metrics))) == 2
