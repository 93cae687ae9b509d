"""One member embeds and pushes; another trains from the spectrum, sweeps, compares, and shares the best run."""

import json
import shutil
from collections.abc import Callable

import pytest

from tests.guide import Team

pytestmark = pytest.mark.xdist_group("team")  # which is built once in a process

COMPARED = 12  # columns of the sweep's table, the experiment's name apart


@pytest.mark.slow
def test_another_trains_a_new_dimension_without_the_embeddings(team: Team) -> None:
    shutil.rmtree(team.base / "ben")
    _, ran, compared = team.follow("Another trains a new dimension")
    ben = team.member("ben")
    assert ben.ran(ran) == ["validate", "train", "evaluate"]
    for unneeded in ("data/raw/demo", "data/embeddings/demo/minilm"):
        assert not (ben.root / unneeded).exists()
        assert not (ben.root / ".dvc/cache" / ben.listing(unneeded)).exists(), f"{unneeded} was downloaded"
    assert (ben.root / ".dvc/cache" / ben.listing("data/spectrum/demo/minilm")).exists()
    before = team.member("ada").metrics()
    assert f"{before['HR@20']:.5f}".rstrip("0") in compared


@pytest.mark.slow
def test_without_a_target_too_nothing_is_embedded(team: Team) -> None:
    ben = team.member("ben")
    ran = ben.run("dvc", "exp", "run", "--pull", "--allow-missing", "-S", "adapter=spectran", "-S", "dim=64")
    assert ben.ran(ran)[0] == "validate"
    assert set(ben.ran(ran)) <= {"validate", "train", "evaluate", "check", "aggregate"}
    assert not (ben.root / "data/embeddings/demo/minilm").exists()


@pytest.mark.slow
def test_a_finished_run_is_fetched_and_not_trained_again(team: Team) -> None:
    """Runs of ada come from the run-cache when ben changes the dim and back."""
    ben = team.member("ben")
    ran = ben.run("dvc", "exp", "run", "evaluate", "--pull", "--allow-missing", "-S", "dim=32")
    assert not {"train", "evaluate"} & set(ben.ran(ran)), ran
    assert ben.metrics() == team.member("ada").metrics()


@pytest.mark.slow
def test_a_sweep_is_queued_shown_and_handed_back(team: Team, clone: Callable[[str], None]) -> None:
    clone("carl")
    printed = team.follow("Five dimensions, and the best of them")
    ben = team.member("ben")
    ran = [ben.ran(ben.run("dvc", "queue", "logs", f"dim-{i}")) for i in range(1, 6)]
    assert ran.pop(1) == [], "ada has run 32 dimensions"
    assert all(sorted(stages) == ["evaluate", "train", "validate"] for stages in ran)
    table = next(text for text in printed if "validation.NDCG@20" in text)
    header = next(line for line in table.splitlines() if "Experiment" in line)
    assert len(header.split()) - 1 <= COMPARED, header
    assert header.split()[1] == "validation.NDCG@20"
    handed = json.loads(ben.run("git", "show", "wider:metrics/evaluation.json"))
    carl = team.member("carl")
    assert carl.metrics() == handed != team.member("ada").metrics()
    assert "dim: 128" in (carl.root / "params.yaml").read_text()
    for checkout in (ben, carl):
        config = json.loads((checkout.root / "data/checkpoints/selected/config.json").read_text())
        assert (config["adapter"], config["dim"]) == ("spectran", 128)


@pytest.mark.slow
def test_an_ablation_is_two_experiments_in_one_picture(team: Team) -> None:
    printed = team.follow("An ablation")
    ben = team.member("ben")
    assert ben.ran(printed[0]) == ["validate", "train", "evaluate"]
    assert ben.ran(printed[1]) == ["validate", "train", "evaluate"]
    page = (ben.root / "comparison/index.html").read_text()
    for shown in ("Learning curve", "Figure 1", '"rev": "full"', '"rev": "no-attention"'):
        assert shown in page
