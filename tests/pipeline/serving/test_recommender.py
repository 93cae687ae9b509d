"""Recommendations of a trained checkpoint, compared with a float64 brute force over its own states and table."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from common.errors import UserError
from pipeline.artifacts import atomic_directory, read_signed, write_signed
from pipeline.runs import CHECKPOINT
from pipeline.serving.recommender import Recommender
from tests.params import change_params

pytestmark = pytest.mark.xdist_group("serving")


@pytest.fixture
def recommender(trained: Path) -> Recommender:
    return Recommender.load(CHECKPOINT)


def float64_ranking(recommender: Recommender, history: list[int], without: set[int]) -> list[tuple[int, float]]:
    """(item, cosine) of every other item, best first. The history is padded here by hand."""
    width, n_items = recommender.max_history, len(recommender.item_ids)
    last = history[-width:]
    padded = torch.tensor([[n_items] * (width - len(last)) + last])
    with torch.no_grad():
        table = recommender.model.adapter.table()
        state = recommender.model.next_item_states(padded, table)[0].double().numpy()
    rows = table.double().numpy()
    scores = (rows / np.linalg.norm(rows, axis=1, keepdims=True)) @ state
    order = np.lexsort((np.arange(n_items), -scores))
    return [(int(i), float(scores[i])) for i in order if i not in without]


def test_recommendations_are_those_of_a_float64_brute_force(recommender: Recommender) -> None:
    ids = recommender.item_ids
    users = recommender.users["items"].to_list()[:40]
    histories = [[ids[i] for i in items] for items in users]
    allow, deny = ids[5:80], ids[40:50]
    for options, hidden in (
        ({}, set()),
        ({"exclude_history": False}, set()),
        ({"deny": deny}, set(range(40, 50))),
        ({"allow": allow, "deny": deny}, {*range(5), *range(80, len(ids)), *range(40, 50)}),
    ):
        found = recommender.recommend(histories, k=7, **options)
        assert found["request"].to_list() == [user for user in range(len(histories)) for _ in range(7)]
        assert found["source"].unique().to_list() == ["model"]
        for user, items in enumerate(users):
            had = set(items) if options.get("exclude_history", True) else set()
            expected = float64_ranking(recommender, items, hidden | had)[:7]
            mine = found.filter(request=user)
            assert mine["item_id"].to_list() == [ids[i] for i, _ in expected]
            assert mine["rank"].to_list() == list(range(1, 8))
            np.testing.assert_allclose(mine["score"], [score for _, score in expected], atol=1e-6)


def test_titles_are_those_of_the_catalogue(recommender: Recommender) -> None:
    titles = dict(pl.read_parquet(recommender.run.sequences / "items.parquet").select("item_id", "title").iter_rows())
    found = recommender.recommend([recommender.item_ids[:3]], k=20)
    assert found["title"].to_list() == [titles[item] for item in found["item_id"]]


def test_a_user_without_history_gets_the_most_popular_items(recommender: Recommender) -> None:
    found = recommender.recommend([[], recommender.item_ids[:2]], k=5)
    counts = recommender.users["items"].explode().value_counts().sort(["count", "items"], descending=[True, False]).head(5)
    mine = found.filter(request=0)
    assert mine["source"].unique().to_list() == ["popularity"]
    assert mine["item_id"].to_list() == [recommender.item_ids[i] for i in counts["items"]]
    assert mine["score"].to_list() == counts["count"].to_list()
    assert found.filter(request=1)["source"].unique().to_list() == ["model"]


def test_where_few_items_are_left_there_are_fewer_rows(recommender: Recommender) -> None:
    ids = recommender.item_ids
    assert recommender.recommend([ids[:2]], k=5, allow=ids[:4])["item_id"].sort().to_list() == sorted(ids[2:4])
    assert recommender.recommend([ids[:2], []], k=5, allow=ids[:2], deny=ids[:2]).height == 0
    assert recommender.recommend([], k=5).height == 0


def test_a_user_of_the_log_is_known_whether_or_not_the_core_filter_kept_them(recommender: Recommender) -> None:
    ids, users = recommender.item_ids, recommender.users
    assert recommender.history_of(users["user_id"][4]) == [ids[i] for i in users["items"][4]]
    assert recommender.history_of("rare") == [ids[3], ids[7]], "oldest first, less the item that was dropped"
    assert recommender.history_of("gone") == []
    assert recommender.history_of("never seen") == []


def test_what_cap_or_min_rating_left_out_of_a_history_is_not_recommended(trained: Path) -> None:
    change_params(Path("params.yaml"), {"preprocess.cap": 1000})
    plain = Recommender.load()
    user, everything = plain.users["user_id"][4], len(plain.item_ids)
    history = plain.history_of(user)
    other = next(item for item in plain.item_ids if item not in history)
    raw = {name: pl.read_parquet(f"data/raw/tiny/{name}.parquet") for name in ("interactions", "items")}
    row = pl.DataFrame([(user, other, None)], raw["interactions"].schema, orient="row")  # without a time, preprocessing drops it
    log = pl.concat([raw["interactions"], row]).with_columns(rating=pl.when(item_id=pl.lit(other)).then(1.0).otherwise(5.0))
    with atomic_directory(Path("data/raw/tiny"), {"source": "tiny"}) as directory:
        log.write_parquet(directory / "interactions.parquet")
        raw["items"].write_parquet(directory / "items.parquet")
        (directory / "understood.json").write_text('{"time_unit": "s", "findings": []}')
    assert set(plain.had_by(user)) == {*history, other}
    files = {"kind": "files", "interactions": "log.csv", "items": "items.csv", "min_rating": 3}
    for change in ({"preprocess.cap": len(history)}, {"preprocess.cap": 1000, "sources.tiny": files}):
        change_params(Path("params.yaml"), change)
        knowing = Recommender.load()
        assert set(knowing.had_by(user)) == {*history, other}
        for k in (5, everything):
            found = knowing.recommend([history, []], k, had=[knowing.had_by(user), [other]])
            assert other not in found["item_id"]
        assert found.filter(request=0).height == everything - len(set(history)) - 1
        assert found.filter(request=1).height == everything - 1, "of somebody without history, the most popular others"
    assert other in knowing.recommend([history], everything)["item_id"]


def test_the_options_that_the_sequences_were_built_with_decide_what_a_user_had(trained: Path) -> None:
    """params.yaml asks for another cap now, which no sequence has; those here were cut at the length of this history."""
    plain = Recommender.load()
    user = plain.users["user_id"][4]
    built_with = {"cap": len(plain.history_of(user)), "ties": "file"}
    sidecar = Path("data/sequences/tiny/sidecar.json")
    write_signed(sidecar, read_signed(sidecar, "preprocess") | {"preprocess": built_with})
    change_params(Path("params.yaml"), {"preprocess.cap": 1000})
    other = next(item for item in plain.item_ids if item not in plain.history_of(user))
    log = Path("data/raw/tiny/interactions.parquet")
    rows = pl.read_parquet(log)
    with atomic_directory(Path("data/raw/tiny"), {"source": "tiny"}) as directory:
        pl.concat([rows, pl.DataFrame([(user, other, 0)], rows.schema, orient="row")]).write_parquet(directory / log.name)
        shutil.copyfile("data/raw/tiny/items.parquet", directory / "items.parquet")
        (directory / "understood.json").write_text('{"time_unit": "s", "findings": []}')
    knowing = Recommender(plain.model, pl.read_parquet("data/sequences/tiny/items.parquet"), plain.users, plain.run)
    assert other in knowing.had_by(user)


def test_a_user_is_not_recommended_a_new_item_that_they_had(trained: Path) -> None:
    """The core filter dropped `lone`, so the catalogue brings it back as new; its click is in the log."""
    plain = Recommender.load()
    user = plain.users["user_id"][4]
    raw = {name: pl.read_parquet(f"data/raw/tiny/{name}.parquet") for name in ("interactions", "items")}
    last = raw["interactions"].filter(user_id=user)["timestamp"].max()
    row = pl.DataFrame([(user, "lone", last + 1)], raw["interactions"].schema, orient="row")
    with atomic_directory(Path("data/raw/tiny"), {"source": "tiny"}) as directory:
        pl.concat([raw["interactions"], row]).write_parquet(directory / "interactions.parquet")
        raw["items"].write_parquet(directory / "items.parquet")
        (directory / "understood.json").write_text('{"time_unit": "s", "findings": []}')
    new = pl.DataFrame({"item_id": ["lone", "other"], "title": ["Lone", "Other"]})
    wider = plain.with_items(new, torch.from_numpy(np.load("data/embeddings/tiny/random/embeddings.npy")[:2]))
    assert wider.history_of(user) == [*plain.history_of(user), "lone"]
    assert set(wider.had_by(user)) == {*plain.history_of(user), "lone"}
    shutil.rmtree("data/raw/tiny")
    without = plain.with_items(new, torch.from_numpy(np.load("data/embeddings/tiny/random/embeddings.npy")[:2]))
    assert without.history_of(user) == plain.history_of(user)
    with pytest.raises(UserError, match="data/raw/tiny"):
        without.had_by(user)


def test_without_the_log_a_stranger_is_no_error(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch of visitors is answered; one line says that dropped users count as unknown."""
    shutil.rmtree("data/raw/tiny")
    recommender = Recommender.load()
    assert [recommender.history_of(user) for user in ("nobody", "rare")] == [[], []]
    assert recommender.history_of(recommender.users["user_id"][4])
    assert capsys.readouterr().err == "data/raw/tiny is not here, so users whom the core filter dropped count as unknown\n"


def test_ten_thousand_items_are_no_trouble(recommender: Recommender) -> None:
    long = [recommender.item_ids[i % 60] for i in range(10_000)]
    found, short = recommender.recommend([long, long[-recommender.max_history :]], k=5, exclude_history=False).partition_by(
        "request"
    )
    assert found["item_id"].to_list() == short["item_id"].to_list(), "the last items decide"


@pytest.mark.parametrize(
    ("histories", "options", "says"),
    [
        ([["no such item"]], {}, "history 0: unknown item 'no such item'"),
        ([[], [3]], {}, "history 1: unknown item 3"),
        (["item00003"], {}, "history 0: expected a list of item ids, found the text 'item00003'"),
        ([[]], {"deny": ["none"]}, "deny: unknown item 'none'"),
        ([[]], {"allow": "item00003"}, "allow: expected a list"),
        ([[]], {"k": 0}, "k is 0; choose a whole number from 1 to"),
        ([[]], {"k": 100_000}, "k is 100000; choose"),
        ([[]], {"k": True}, "k is True; choose"),
        ([[]], {"k": "ten"}, "k is 'ten'; choose"),
    ],
)
def test_a_mistake_is_one_line(recommender: Recommender, histories: list, options: dict, says: str) -> None:
    with pytest.raises(UserError) as refused:
        recommender.recommend(histories, **options)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_other_item_is_proposed_for_an_unknown_one(recommender: Recommender) -> None:
    """Ids that look alike are unrelated products."""
    with pytest.raises(UserError) as refused:
        recommender.recommend([[recommender.item_ids[0] + "x"]])
    assert str(refused.value) == (
        f"history 0: unknown item '{recommender.item_ids[0]}x'; items are those of "
        "data/sequences/tiny/items.parquet, skip_unknown passes over others"
    )


def test_a_truncated_checkpoint_is_refused(trained: Path) -> None:
    weights = CHECKPOINT / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        Recommender.load()


def test_a_checkpoint_of_other_data_is_refused(trained: Path) -> None:
    """Items of the same number but in another order would be recommended under wrong names."""
    sequences = Path("data/sequences/tiny")
    items = pl.read_parquet(sequences / "items.parquet").reverse()
    users, statistics = pl.read_parquet(sequences / "sequences.parquet"), (sequences / "statistics.json").read_bytes()
    with atomic_directory(sequences, {"dataset": "tiny"}) as directory:
        items.write_parquet(directory / "items.parquet")
        users.write_parquet(directory / "sequences.parquet")
        (directory / "statistics.json").write_bytes(statistics)
    with pytest.raises(UserError, match="was trained from other data"):
        Recommender.load()


def test_a_config_that_is_not_a_runs_is_refused(trained: Path) -> None:
    weights = (CHECKPOINT / "model.safetensors").read_bytes()
    with atomic_directory(CHECKPOINT, {"run": "x"}) as directory:
        (directory / "config.json").write_text(json.dumps({"dataset": "tiny"}))
        (directory / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"config.json is not a run's"):
        Recommender.load()
