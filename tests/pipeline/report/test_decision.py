"""The page with the decision."""

import polars as pl

from pipeline.report.candidate import Candidate
from pipeline.report.decision import verdict
from pipeline.report.trivial import Beaten


def runs(adapter: str, seconds: float = 1.0, size: int = 10, seeds: int = 2) -> Candidate:
    row = {"adapter": adapter, "training_seconds": seconds, "trainable_parameters": size}
    return Candidate(pl.DataFrame([row] * seeds))


def test_the_sentence_to_act_on() -> None:
    everyone = {"base": runs("base", 1, 30), "spectran": runs("spectran", 9, 20), "morec": runs("morec", 5, 10)}
    leader = everyone["spectran"]
    sure = Beaten("ItemKNN", 0.1, 0.5, 0.3, 0.7, 0.001)
    close = {"other": "base"}, {"other": "morec"}
    assert verdict(leader, everyone, [], sure, set(), []) == "Ship SpecTran: it is beyond chance above every other adapter."
    assert verdict(runs("spectran", seeds=1), everyone, [], sure, set(), []) == (
        "Ship SpecTran: it is above every other adapter, beyond chance in the users; with one seed, chance in training is not "
        "known."
    )
    assert verdict(leader, everyone, list(close), sure, set(), []) == (
        "Ship SpecTran, or any of those level with it: Base (ID only), MoRec. Base (ID only) is the fastest of them to train, "
        "MoRec the smallest."
    )
    for improvement, p, how in ((0.02, 0.4, "is not beyond chance above"), (-0.2, 0.001, "does not beat")):
        beaten = Beaten("ItemKNN", 0.1, improvement, 0.0, 0.0, p)
        said = verdict(leader, everyone, [], beaten, set(), [])
        assert said == f"Ship none yet: SpecTran, the best adapter, {how} ItemKNN, which needs no training."
    assert verdict(leader, everyone, [], sure, {"spectran"}, []).startswith("No verdict yet: every adapter has a run that was")
    assert verdict(leader, everyone, [], sure, {"base", "morec"}, []).startswith(
        "No verdict yet: every adapter except SpecTran has a run"
    )
    assert verdict(leader, everyone, [], sure, {"base"}, []).endswith("every other adapter with runs that support a conclusion.")
    assert verdict(leader, everyone, [], sure, {"base"}, ["Base (ID only) (0.5000)"]) == (
        "No verdict yet: Base (ID only) (0.5000) scored above SpecTran, but with runs that were ended by `train.epochs`, or "
        "never learned; raise it, or `train.patience`."
    )
