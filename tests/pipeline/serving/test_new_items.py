"""Rows of the item table for items that the training did not know."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from common.errors import UserError
from common.section import Section
from models.adapters import ADAPTERS
from models.core.adapter import Adapter, Spectrum
from models.losses import LOSSES
from pipeline.artifacts import read_signed, write_signed
from pipeline.serving import new_items, recommender
from pipeline.serving.new_items import new_rows, read_new_items, shortened
from pipeline.serving.package import PACKAGE, write_package
from pipeline.serving.recommender import Recommender
from pipeline.serving.server import Package
from pipeline.training.inputs import load_spectrum
from pipeline.training.model import build_recommender

pytestmark = pytest.mark.xdist_group("serving")
OPTIONS = yaml.safe_load((Path(__file__).parents[3] / "params.yaml").read_text())["adapters"]


@pytest.fixture
def spectrum(project: Path) -> Spectrum:
    return load_spectrum(Path("data/spectrum/tiny/random"))


@pytest.fixture
def known() -> torch.Tensor:
    """Embeddings of the training's items."""
    return torch.from_numpy(np.load("data/embeddings/tiny/random/embeddings.npy"))


def build(spectrum: Spectrum, name: str, **options: Any) -> tuple[Adapter, dict[str, Any]]:
    chosen = OPTIONS[name] | options
    torch.manual_seed(0)
    model = build_recommender(
        spectrum,
        adapter=name,
        adapter_options=chosen,
        backbone="sasrec",
        backbone_options={},
        dim=16,
        max_history=5,
        objective=LOSSES.load("info_nce")(0.07, 7),
    )
    return model.adapter.eval(), chosen


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_text_of_a_known_item_gets_the_row_that_it_has(spectrum: Spectrum, known: torch.Tensor, name: str) -> None:
    """Every item's own row, but for the ID part: IDs of new items are zero, so those of the trained ones are made zero first."""
    adapter, options = build(spectrum, name)
    if name != "llminit" and adapter.semantic_table() is None:
        with pytest.raises(UserError, match="knows items by their ID alone"):
            new_rows(adapter, options, spectrum, known)
        return
    if name not in ("llminit", "llm_esr"):  # their IDs start from the text, so an untrained table is reproduced whole
        with torch.no_grad():
            for parameter in [getattr(adapter, "id_embedding", None)]:
                if parameter is not None:
                    parameter.zero_()
    expected = adapter.table().detach()[[4, 1, 7]]
    torch.testing.assert_close(new_rows(adapter, options, spectrum, known[[4, 1, 7]]), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spectran", {"center": True}),
        ("spectran", {"fusion": "concat"}),
        ("spectran", {"fusion": "none", "variant": "without_attention"}),
        ("morec", {"fusion": "none", "input_scale": "unit"}),
        ("unisrec", {"fusion": "none"}),
        ("llminit", {"std": 0.5}),
        ("whitenrec", {"whiten_rank": 9}),
    ],
)
def test_options_of_the_adapter_are_kept(spectrum: Spectrum, known: torch.Tensor, name: str, options: dict[str, Any]) -> None:
    adapter, chosen = build(spectrum, name, **options)
    if hasattr(adapter, "id_embedding") and name != "llminit":
        with torch.no_grad():
            adapter.id_embedding.zero_()
    torch.testing.assert_close(new_rows(adapter, chosen, spectrum, known[:7]), adapter.table().detach()[:7], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["morec", "unisrec", "llm_esr", "rlmrec", "spectran", "llminit"])
def test_an_option_that_a_run_leaves_out_has_its_default(spectrum: Spectrum, known: torch.Tensor, name: str) -> None:
    """As in training, where `morec: {}` is a section too; a number written as text is one."""
    adapter, _ = build(spectrum, name)
    default = adapter.Config().model_dump()
    torch.testing.assert_close(new_rows(adapter, {}, spectrum, known), new_rows(adapter, default, spectrum, known))
    if name == "llminit":
        found, expected = (new_rows(adapter, {"std": std}, spectrum, known) for std in ("5e-2", 0.05))
        torch.testing.assert_close(found, expected)


def test_rows_of_u_are_those_of_a_float64_projection(spectrum: Spectrum) -> None:
    """Against numpy: u = e V / sigma from an SVD of the embeddings, up to the sign of each direction."""
    embeddings = np.load("data/embeddings/tiny/random/embeddings.npy").astype(np.float64)
    new = 0.1 * np.random.default_rng(5).normal(size=(4, embeddings.shape[1]))
    _, sigma, vt = np.linalg.svd(embeddings, full_matrices=False)
    adapter, options = build(spectrum, "spectran", fusion="none", variant="principal_identity")
    expected = new @ vt.T / sigma  # short rows: nothing is shortened
    with torch.no_grad():
        weights = adapter.weights().double().numpy()  # (d, r)
    signs = np.sign((spectrum.V.double().numpy() * vt.T).sum(0))
    found = new_rows(adapter, options, spectrum, torch.from_numpy(new).float()).numpy()
    np.testing.assert_allclose(found, (expected * signs) @ weights.T, atol=1e-5)


def test_a_long_row_is_shortened_to_the_longest_of_the_training(spectrum: Spectrum, known: torch.Tensor) -> None:
    rows = shortened(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    torch.testing.assert_close(rows, torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0]]))
    longest = torch.linalg.vector_norm(spectrum.U, dim=1).max()
    made = new_items._Rows(Section(), spectrum, 50 * known[:3], "mean").U(spectrum.U, torch.nn.Module())  # type: ignore[arg-type]
    torch.testing.assert_close(torch.linalg.vector_norm(made, dim=1), longest.expand(3))


@pytest.mark.parametrize("ids", ["mean", "zero"])
def test_ids_are_the_mean_or_zero(spectrum: Spectrum, known: torch.Tensor, ids: str) -> None:
    adapter, options = build(spectrum, "unisrec")  # concat: IDs are the first half
    found = new_rows(adapter, options, spectrum, known[:3], ids)[:, :8]
    expected = adapter.id_embedding.detach().mean(0) if ids == "mean" else torch.zeros(8)
    torch.testing.assert_close(found, expected.expand(3, 8))


@pytest.mark.parametrize(("name", "options"), [("base", {}), ("rlmrec", {"fusion": "id"})])
def test_an_adapter_of_ids_alone_is_refused(spectrum: Spectrum, known: torch.Tensor, name: str, options: dict[str, Any]) -> None:
    adapter, chosen = build(spectrum, name, **options)
    with pytest.raises(UserError, match="knows items by their ID alone"):
        new_rows(adapter, chosen, spectrum, known)


# ------------------------------------------------------------------------------------------------------------- in the recommender


@pytest.fixture
def extended(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recommender]:
    """Add two items by a file; one has the embedding of item 5. The tiny project has no encoder: embeddings are given."""
    vectors = torch.from_numpy(np.load("data/embeddings/tiny/random/embeddings.npy"))
    monkeypatch.setattr(recommender, "embed", lambda texts, run: torch.stack([vectors[5], 0.5 * (vectors[1] + vectors[2])]))

    def extend() -> Recommender:
        pl.DataFrame({"item_id": ["new1", "new2"], "title": ["First", "Second"]}).write_csv("new.csv")
        return Recommender.load().with_new_items(Path("new.csv"))

    return extend


def test_new_items_are_recommended_and_may_be_in_a_history(extended: Callable[..., Recommender]) -> None:
    wider = extended()
    assert wider.item_ids[-2:] == ["new1", "new2"]
    ids = wider.item_ids
    found = wider.recommend([["new1", ids[3]], ids[:2]], k=len(ids))
    assert "new2" in found.filter(request=0)["item_id"]
    assert {"new1", "new2"} <= set(found.filter(request=1)["item_id"])
    assert found.filter(pl.col("item_id") == "new2")["title"].unique().to_list() == ["Second"]
    assert wider.recommend([[]], k=len(ids))["item_id"].to_list()[-2:] == ["new1", "new2"], "nobody has had them"


def test_known_items_keep_their_rows_and_scores(extended: Callable[..., Recommender]) -> None:
    plain, wider = Recommender.load(), extended()
    histories = [plain.item_ids[:3], plain.item_ids[7:9]]
    expected = plain.recommend(histories, k=20)
    found = wider.recommend(histories, k=20, deny=["new1", "new2"])
    assert found["item_id"].to_list() == expected["item_id"].to_list()
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-6)


def test_the_history_of_a_user_has_the_new_items_of_the_log(trained: Path) -> None:
    """Also if the history was asked for before: the core filter dropped this user, and the item."""
    plain = Recommender.load()
    ids = plain.item_ids
    assert plain.history_of("rare") == [ids[3], ids[7]]
    embedding = torch.from_numpy(np.load("data/embeddings/tiny/random/embeddings.npy"))[5:6]
    wider = plain.with_items(pl.DataFrame({"item_id": ["not kept"], "title": ["Kept now"]}), embedding)
    assert wider.history_of("rare") == [ids[3], "not kept", ids[7]]
    assert plain.history_of("rare") == [ids[3], ids[7]]


@pytest.mark.slow
def test_a_package_holds_the_new_items(extended: Callable[..., Recommender]) -> None:
    wider = extended()
    write_package(wider)
    package = Package(PACKAGE)
    assert package.config["new_items"] == 2
    assert "The last 2 items were not known to the training" in (PACKAGE / "README.md").read_text()
    for history in (["new1", wider.item_ids[0]], wider.item_ids[:4]):
        expected = wider.recommend([history], k=30)["item_id"].to_list()
        assert [item["item_id"] for item in package.recommend(history, 30)["items"]] == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("item_id,name\na,b\n", "column 'title' is missing"),
        ("item_id,title\na,\n", "no row has an id and a title"),
    ],
)
def test_a_wrong_file_of_new_items_is_one_line(trained: Path, content: str, says: str) -> None:
    Path("new.csv").write_text(content)
    with pytest.raises(UserError) as refused:
        read_new_items(Path("new.csv"), Recommender.load().run)
    assert says in str(refused.value)
    path = re.escape(str(Path("new.csv").resolve()))
    assert re.match(rf"(new\.csv|{path}): ", str(refused.value))


def test_rows_that_training_drops_are_dropped_and_said(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("new.csv").write_text("item_id,title\na,Kettle\na,Kettle\n,No id\nb, \nc,Pot\nd,X\n")
    assert read_new_items(Path("new.csv"), Recommender.load().run).rows() == [("a", "Kettle", "Kettle"), ("c", "Pot", "Pot")]
    assert capsys.readouterr().err.splitlines() == [
        "new.csv: Dropped 1 row of the catalogue without an id.",
        "new.csv: No title, or one of spaces only: 1 item of 6.",
        "new.csv: Listed more than once, the first row with a title is taken: 1 item.",
        "new.csv: dropped, because their title is missing or shorter than 2 characters: 2 items ('b', 'd')",
    ]


def made_from(item_columns: dict[str, str | int]) -> None:
    """Write into the sequences' sidecar that the dataset's catalogue has these columns."""
    sidecar = Path("data/sequences/tiny/sidecar.json")
    content = read_signed(sidecar, "")
    write_signed(sidecar, content | {"raw": {"source": {"kind": "files", "item_columns": item_columns}}})


@pytest.mark.parametrize(
    ("item_columns", "content"),
    [
        ({"item_id": "sku", "title": "name"}, "sku;name;item_id\n7;Kettle;1\n"),
        ({"item_id": "sku", "title": "name"}, "item_id,title\n7,Kettle\n"),
        ({"item_id": "sku"}, "sku,title\n7,Kettle\n"),
        ({"item_id": 2, "title": 1}, "Kettle,7\n"),
        ({"item_id": 2, "title": 1}, "title,item_id\nKettle,7\n"),
    ],
)
def test_the_users_own_catalogue_is_read_by_the_names_of_the_dataset(
    trained: Path, item_columns: dict[str, str | int], content: str
) -> None:
    run = Recommender.load().run
    made_from(item_columns)
    Path("new.csv").write_text(content)
    assert read_new_items(Path("new.csv"), run).rows() == [("7", "Kettle", "Kettle")]


def test_a_column_that_is_missing_is_named_as_the_dataset_names_it(trained: Path) -> None:
    run = Recommender.load().run
    made_from({"item_id": "sku", "title": "name"})
    Path("new.csv").write_text("sku,title\n7,Kettle\n")
    with pytest.raises(UserError, match="column 'name' is missing"):
        read_new_items(Path("new.csv"), run)


def test_of_a_whole_catalogue_the_known_items_keep_their_rows(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Recommender.load()
    given: list[list[str]] = []

    def embed(texts: list[str], run: object) -> torch.Tensor:
        given.append(texts)
        return torch.from_numpy(np.load("data/embeddings/tiny/random/embeddings.npy"))[: len(texts)]

    monkeypatch.setattr(recommender, "embed", embed)
    catalogue = pl.DataFrame({"item_id": [*plain.item_ids, "new1"], "title": [*plain.titles, "First"]})
    catalogue.sample(fraction=1, shuffle=True, seed=0).write_csv("catalogue.csv")
    wider = plain.with_new_items(Path("catalogue.csv"))
    assert wider.item_ids == [*plain.item_ids, "new1"]
    assert given == [["First"]]
    torch.testing.assert_close(wider.table[:-1], plain.table)


def test_a_catalogue_without_a_new_item_changes_nothing_and_says_so(
    extended: Callable[..., Recommender], capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a day without a new product."""
    wider = extended()
    assert wider.with_new_items(Path("new.csv")) is wider
    assert capsys.readouterr().err == "new items: new.csv has none; the training knew all 2\n"


def test_a_glob_names_the_parts_of_a_catalogue(trained: Path) -> None:
    Path("parts").mkdir()
    for item in "ab":
        Path(f"parts/{item}.csv").write_text(f"item_id,title\n{item},Pot {item}\n")
    run = Recommender.load().run
    assert read_new_items(Path("parts/*.csv"), run)["item_id"].to_list() == ["a", "b"]
    with pytest.raises(UserError, match=r"none/\*\.csv: no file matches"):
        read_new_items(Path("none/*.csv"), run)


def test_an_item_that_is_there_already_is_refused(trained: Path) -> None:
    plain = Recommender.load()
    with pytest.raises(UserError, match=f"new items: '{plain.item_ids[0]}' is in the catalogue already"):
        plain.with_items(pl.DataFrame({"item_id": plain.item_ids[:1], "title": ["Again"]}), torch.zeros(1, 2))


def test_a_spectrum_that_does_not_name_its_encoder_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="does not say by which encoder it was made"):
        new_items.embed(["a title"], Recommender.load().run)
