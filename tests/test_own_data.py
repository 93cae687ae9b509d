"""docs/own-data.md as a script: its commands are typed in a copy of the project, its recipes read small files."""

import gzip
import json
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from common.errors import UserError
from tests.clone import ROOT, Project, copy_repository, write_params
from tests.guide import Step, check

PAGE = ROOT / "docs/own-data.md"
START = 1_500_000_000  # s, in July 2017
USERS, ITEMS = range(1, 9), range(1, 8)
CLICKS = [(user, item, START + 86_400 * place) for user in USERS for place, item in enumerate(ITEMS)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def recipes() -> dict[str, dict[str, Any]]:
    return {name: source for block in blocks("yaml") for name, source in yaml.safe_load(block)["sources"].items()}


def steps() -> list[Step]:
    found: list[Step] = []
    for block in blocks("console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Step("you", line[2:]))
            else:
                found[-1].shown.append(line)
    return found


def lines(header: list[str], rows: list[tuple], mark: str = ",") -> str:
    return "".join(mark.join(map(str, row)) + "\n" for row in ([header] if header else []) + rows)


def movielens_1m() -> dict[str, bytes]:
    ratings = [(user, item, 3 + item % 3, time) for user, item, time in CLICKS]
    movies = [(item, f"Café {item} (1995)", "Drama|War") for item in ITEMS]
    return {"ml-1m/ratings.dat": lines([], ratings, "::").encode(), "ml-1m/movies.dat": lines([], movies, "::").encode("latin-1")}


def movielens_32m() -> dict[str, bytes]:
    ratings = [(user, item, 3.5, time) for user, item, time in CLICKS]
    movies = [(item, f'"Film, The {item} (1995)"', "Drama") for item in ITEMS]
    return {
        "ml-32m/ratings.csv": lines(["userId", "movieId", "rating", "timestamp"], ratings).encode(),
        "ml-32m/movies.csv": lines(["movieId", "title", "genres"], movies).encode(),
    }


def amazon_2023() -> dict[str, bytes]:
    ratings = [(f"A{user}", f"B00{item}", 5.0, 1000 * time + 321) for user, item, time in CLICKS]
    meta = [
        {"main_category": "Video Games", "title": f"Game &amp; more {item}", "price": price, "features": ["a", "b"],
         "description": [], "details": {"Color": "red"}, "parent_asin": f"B00{item}"}
        for item, price in zip(ITEMS, [1.5, None, "from 3", 2, None, 7, "—"], strict=True)
    ]  # fmt: skip
    return {
        "Video_Games.csv.gz": gzip.compress(lines(["user_id", "parent_asin", "rating", "timestamp"], ratings).encode()),
        "meta_Video_Games.jsonl.gz": gzip.compress("\n".join(map(json.dumps, meta)).encode()),
    }


def steam() -> dict[str, bytes]:
    days = [f"2017-07-{14 + place}" for place in range(len(ITEMS))]
    reviews = [
        {"username": f"user {user}", "product_id": str(10 * item), "date": days[item - 1], "text": 'It\'s "good"', "hours": 1.5}
        for user, item, _ in CLICKS
    ]
    games = [{"id": str(10 * item), "app_name": f"Game {item}", "price": 4.99, "tags": ["Action", "Indie"]} for item in ITEMS]
    return {
        name: gzip.compress("\n".join(map(repr, records)).encode())
        for name, records in (("steam_reviews.json.gz", reviews), ("steam_games.json.gz", games))
    }


def recbole() -> dict[str, bytes]:
    log = [(user, item, 4.0, float(time)) for user, item, time in CLICKS]
    items = [(item, f'The "odd" one {item}', 1995) for item in ITEMS]
    header = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    return {
        "ml-100k/ml-100k.inter": lines(header, log, "\t").encode(),
        "ml-100k/ml-100k.item": lines(["item_id:token", "movie_title:token_seq", "year:float"], items, "\t").encode(),
    }


def shop() -> dict[str, bytes]:
    rows = [(f"K{user:03d}", f"{item:05d}", f"{13 + item}.07.2017 10:{user:02d}") for user, item, _ in CLICKS]
    articles = [(f"{item:05d}", f"Gewürz {item}") for item in ITEMS]
    header = ["Kunde", "Artikel", "Zeit"]
    return {
        "orders/2017-07a.csv": lines(header, rows[:20], ";").replace("\n", "\r\n").encode("latin-1"),
        "orders/2017-07b.csv": lines(header, rows[20:], ";").replace("\n", "\r\n").encode("latin-1"),
        "articles.csv": lines(["Artikel", "Bezeichnung"], articles, ";").encode("latin-1"),
    }


# Recipe -> its files, the first title, users and items, the unit of times.
EXPECTED: dict[str, tuple[Callable[[], dict[str, bytes]], str, str]] = {
    "ml-1m": (movielens_1m, "Café 1 (1995)", "s"),
    "ml-32m": (movielens_32m, "Film, The 1 (1995)", "s"),
    "games-2023": (amazon_2023, "Game & more 1", "ms"),
    "steam": (steam, "Game 1", "s"),
    "ml-100k": (recbole, 'The "odd" one 1', "s"),
    "shop": (shop, "Gewürz 1", "s"),
}


def test_every_recipe_is_tried() -> None:
    assert set(recipes()) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_reads_files_of_its_format(project: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user's sequence is the items in their order; options of the recipe are taken at their word."""
    make, title, unit = EXPECTED[name]
    for path, content in make().items():
        (project / path).parent.mkdir(exist_ok=True)
        (project / path).write_bytes(content)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["sources"][name] = recipes()[name] | {"core": 3}
    write_params(project, params)
    for stage in ("download", "preprocess"):
        monkeypatch.setattr(sys, "argv", [stage, name])
        import_module(f"stages.{stage}").main()
    users = pl.read_parquet(f"data/sequences/{name}/sequences.parquet")
    items = pl.read_parquet(f"data/sequences/{name}/items.parquet")
    kept = [item for item in ITEMS if recipes()[name].get("min_rating", 0) <= 3 + item % 3 or name != "ml-1m"]
    assert items.height == len(kept)
    assert users["items"].to_list() == [list(range(len(kept)))] * len(USERS)
    assert title in {text.replace(" 2", " 1") for text in items["title"]}
    statistics = json.loads(Path(f"data/sequences/{name}/statistics.json").read_text())
    assert statistics.get("time_unit", "s") == unit
    (day,) = {time // (1000 if unit == "ms" else 1) // 86_400 for time in users["timestamps"].list.first()}
    assert day in (START // 86_400, START // 86_400 + 1)
    sidecar = json.loads(Path(f"data/sequences/{name}/sidecar.json").read_text())
    assert sidecar["preprocess"]["cap"] == recipes()[name].get("cap", 13)
    assert sidecar["preprocess"]["ties"] == recipes()[name].get("ties", "file")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project in which nothing was run."""
    root = tmp_path_factory.mktemp("own") / "project"
    copy_repository(root)
    project = Project(root, COLUMNS="400")
    project.run("git", "init", "-q")
    project.commit()
    return project


@pytest.mark.slow
def test_the_page_leads_from_csv_to_a_decision(clone: Project) -> None:
    """Every command is typed; what it prints is what the page shows."""
    for step in steps():
        check(step, clone.run("bash", "-c", step.command))
    decision = (clone.root / "metrics/decision.md").read_text()
    for part in (
        "## Mine, SASRec",
        "NDCG@20",
        "level with",
        "best without training",
        "ranking, a user",
        "size",
        "training, a run",
    ):
        assert part in decision
    assert "ItemKNN" in (clone.root / "metrics/report.md").read_text()


@pytest.mark.slow
def test_dvc_sees_a_changed_file_and_repeats_what_depends_on_it_alone(clone: Project) -> None:
    """A changed log; another cap; another dataset's options; files that are not here; an option while they are not."""
    params = yaml.safe_load((clone.root / "params.yaml").read_text())
    mine = {"kind": "files", "interactions": "logs/*.csv", "items": "items.csv", "core": 3}
    params["sources"]["mine"] = mine
    write_params(clone.root, params)
    (clone.root / "logs").mkdir()
    header = "user_id,item_id,timestamp\n"
    (clone.root / "logs/1.csv").write_text(header + lines([], CLICKS))
    (clone.root / "items.csv").write_text(lines(["item_id", "title"], [(item, f"Title {item}") for item in ITEMS]))
    target = "data/dvc.yaml:preprocess@mine"

    def ran(**changes: Any) -> list[str]:
        params["sources"]["mine"] = mine | changes
        write_params(clone.root, params)
        return clone.ran(clone.run("dvc", "repro", target))

    assert ran() == ["validate", "scan", "download@mine", "preprocess@mine"]
    assert ran() == ["scan"]
    (clone.root / "logs/2.csv").write_text(header + f"9,1,{START}\n")
    assert ran() == ["scan", "download@mine", "preprocess@mine"], "a file that the glob names from now on"
    params["templates"]["demo"], params["sources"]["demo"]["cap"] = "{title} {brand}", 5
    assert ran() == ["validate", "scan"], "options of another dataset"
    assert ran(cap=4) == ["validate", "scan", "preprocess@mine"]
    for file in ("1", "2"):
        (clone.root / f"logs/{file}.csv").unlink()
    assert ran(cap=5) == ["validate", "scan", "preprocess@mine"], "as on a colleague's machine"
    params["sources"]["mine"] = mine | {"time": "s"}
    write_params(clone.root, params)
    assert "no file matches" in clone.run("dvc", "repro", target, fails=True)


def test_the_example_is_not_written_over_what_is_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages import example

    (project / "clicks.csv").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["example"])
    with pytest.raises(UserError, match="is there already; move it away first"):
        example.main()
    assert (project / "clicks.csv").read_text() == "mine"
    assert not (project / "catalogue.csv").exists()
