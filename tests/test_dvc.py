"""The pipeline with the real `git` and `dvc`, in a clone with a tiny configuration."""

import json
import re
import shutil
import sys

import pytest
import yaml

from tests.clone import Project, copy_repository, write_params

DATA = ("download", "preprocess", "embed", "svd")

pytestmark = pytest.mark.xdist_group("dvc")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("clone") / "project"
    params = copy_repository(root)
    params["sources"]["other"] = {"kind": "demo", "seed": 1, "items": 120, "users": 150}
    params["encoders"]["minilm-cls"] = params["encoders"]["minilm"] | {"pooling": "cls"}
    params["grid"]["ablations"]["variants"] = ["without_attention"]
    params["grid"]["dimensions"] |= {"adapters": ["base"], "dims": [8]}
    params["grid"]["tuning"] |= {"losses": ["cross_entropy"], "trials": 2}
    write_params(root, params)
    demo_project = Project(root)
    demo_project.run("git", "init", "-q")
    demo_project.commit()
    # Installed already: here.
    (root / ".venv").symlink_to(sys.prefix)
    demo_project.printed = demo_project.run("make", "--assume-old=.venv/installed", "demo")
    demo_project.commit()
    return demo_project


def test_one_command_runs_from_download_to_all_tables(project: Project) -> None:
    for file in (
        "evaluation.json",
        "training.json",
        "history.csv",
        "selected.md",
        "report.html",
        "report.md",
        "tables/significance.csv",
        "figures/png/figure1.png",
        "tables/table2.md",
        "tables/table2.tex",
    ):
        assert (project.root / "metrics" / file).stat().st_size > 0
    table = (project.root / "metrics/tables/table2.md").read_text()
    assert "Base" in table
    assert "SpecTran" in table
    assert not list(project.root.rglob("*.partial")), "an atomic write left something behind"


def test_the_figures_are_dvcs_plots(project: Project) -> None:
    project.run("dvc", "plots", "show")
    shown = (project.root / "dvc_plots/index.html").read_text()
    assert "figure1.png" in shown
    assert "popularity.png" in shown


def test_make_demo_prints_the_comparison_and_says_where_the_report_lies(project: Project) -> None:
    leaderboard = (project.root / "metrics/tables/leaderboard.txt").read_text()
    assert leaderboard in project.printed
    assert not re.search(r"\*\*|<u>|\|", leaderboard), "a terminal shows no markup"
    assert max(map(len, leaderboard.splitlines())) < 100
    verdict = " ".join(leaderboard.partition("\n\n")[0].split())
    assert verdict in (project.root / "metrics/report.md").read_text(), "one verdict"
    assert "Report:   metrics/report.html" in project.printed
    assert "grid: spectran" in (project.root / "metrics/selected.md").read_text(), (
        "the selected run stands beside the grid's cells"
    )


def test_a_second_repro_does_nothing(project: Project) -> None:
    assert project.ran(project.run("dvc", "repro", "dvc.yaml", "grid/dvc.yaml")) == []


def test_an_experiment_reruns_training_only_and_metrics_diff_shows_it(project: Project) -> None:
    before = project.metrics()
    ran = project.ran(project.run("dvc", "exp", "run", "evaluate", "-S", "adapter=spectran", "-S", "dim=8"))
    assert ran == ["validate", "train", "evaluate"]
    shown = json.loads(project.run("dvc", "metrics", "diff", "--json"))["metrics/evaluation.json"]
    assert shown["HR@20"]["old"] == before["HR@20"]
    assert shown["HR@20"]["new"] == project.metrics()["HR@20"]
    printed = project.run("dvc", "exp", "run", "-S", "adapter=alphafuse", "-S", "dim=12")
    assert project.ran(printed) == ["validate", "train", "evaluate", "aggregate"], "the same dataset is not checked again"
    assert re.search(rf"this run \(alphafuse, dim 12, seed 0\) +{project.metrics()['NDCG@20']:.4f} ", printed)
    gap = 100 * (before["NDCG@20"] / project.metrics()["NDCG@20"] - 1)
    assert re.search(rf"last commit \(base, dim 16, seed 0\) +{before['NDCG@20']:.4f} .* {re.escape(f'{gap:+.1f}')} %\n", printed)
    assert "last commit" not in (project.root / "metrics/selected.md").read_text(), "the next commit would outdate it"


@pytest.mark.slow
def test_another_choice_of_history_only_evaluates_again(project: Project) -> None:
    project.run("git", "checkout", "-q", "params.yaml")
    project.run("dvc", "exp", "run", "evaluate")
    before = project.metrics()
    ran = project.ran(project.run("dvc", "exp", "run", "evaluate", "-S", "evaluate.exclude_history=true"))
    assert ran == ["validate", "evaluate"]
    assert project.metrics()["HR@20"] == before["others"]["without_history"]["HR@20"]


def test_the_grid_stays_as_it_is_while_the_selected_run_changes(project: Project) -> None:
    project.run("git", "checkout", "-q", "params.yaml")
    ran = project.ran(project.run("dvc", "exp", "run", "-S", "dim=8", "grid/dvc.yaml"))
    assert ran == ["validate"]


@pytest.mark.slow
def test_the_grid_runs_several_at_a_time_and_survives_a_failure(project: Project) -> None:
    """Finished runs become cells. A run that fails is named with its last line, and does not affect the others."""
    project.run("git", "checkout", "-q", "params.yaml", "metrics")
    grid = (sys.executable, "-m", "stages.grid", "--jobs", "2")
    assert "all cells and tables are up to date" in project.run(*grid)
    params = (project.root / "params.yaml").read_text()
    (project.root / "params.yaml").write_text(params.replace("grid:\n  dim: 16", "grid:\n  dim: 117"))
    printed = project.run(*grid, fails=True).splitlines()[-1]
    assert printed.startswith("grid: nothing was trained: spectran on demo cannot be built; adapter spectran: dim is 117, but")
    assert re.search(r"choose grid\.dim <= \d+, which fits all", printed)
    odd = yaml.safe_load(params)
    odd["grid"]["dim"], odd["adapters"]["spectran"]["fusion"] = 17, "concat"
    write_params(project.root, odd)
    printed = project.run(*grid, fails=True).splitlines()[-1]
    assert printed.startswith("grid: nothing was trained: spectran on demo cannot be built; adapter spectran: dim is 17, but a")
    hopeless = yaml.safe_load(params)
    hopeless["grid"]["dim"], hopeless["adapters"]["spectran"]["id_std"] = 12, 1e39
    write_params(project.root, hopeless)
    printed = project.run(*grid, fails=True)
    assert "Traceback" not in printed
    assert re.search(r"\[4/4\]", printed)
    for seed in (0, 1):
        assert re.search(rf"demo-sasrec-base dim 12 seed {seed}: done", printed)
        assert re.search(rf"demo-sasrec-spectran dim 12 seed {seed}: FAILED, prepare: .*the loss is nan", printed)
    assert re.search(r"2 of 4 tasks failed; the first, .*: prepare: .*the loss is nan", printed)
    assert (project.root / "grid/cells/demo-sasrec-base/metrics.csv").is_file()
    assert "1 of 2 cells are missing" in project.run(sys.executable, "-m", "stages.aggregate", fails=True)
    project.run(sys.executable, "-m", "stages.aggregate", "--partial")
    project.run("git", "checkout", "-q", "params.yaml", "metrics")
    shutil.rmtree(project.root / ".scratch")
    assert "all cells and tables are up to date" in project.run(*grid), "what DVC has is not trained again"


@pytest.mark.slow
def test_variants_dims_and_tuning_train_only_what_is_new(project: Project) -> None:
    """An empty list gives no stage, adding a dataset trains only its cells, and adding a dim only the runs of that dim."""
    project.run("git", "checkout", "-q", "params.yaml", "metrics")
    grid = (sys.executable, "-m", "stages.grid", "--jobs", "2")
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("    datasets: []", "    datasets: [demo]"))
    printed = project.run(*grid)
    assert re.findall(r"\] (demo-[^:]+): done", printed), printed
    tuned = [
        f"demo-sasrec-{adapter} dim 16 seed {seed} tuned cross_entropy" for adapter in ("base", "spectran") for seed in (0, 1)
    ]
    assert sorted(re.findall(r"\] (demo-[^:]+): done", printed)) == sorted(
        [
            "demo-sasrec-base dim 8 seed 0",
            "demo-sasrec-base dim 8 seed 1",
            "demo-sasrec-spectran without_attention dim 16 seed 0",
            "demo-sasrec-spectran without_attention dim 16 seed 1",
            "demo-sasrec-base-cross_entropy tuning",
            "demo-sasrec-spectran-cross_entropy tuning",
            *tuned,
        ]
    )
    params.write_text(params.read_text().replace("dims:\n    - 8", "dims:\n    - 8\n    - 12"))
    printed = project.run(*grid)
    assert len(re.findall(r"dim 12 seed [01]: done", printed)) == len(re.findall(": done", printed)) == 2
    assert "all cells and tables are up to date" in project.run(*grid)
    names = [f"demo-sasrec-{adapter}-cross_entropy" for adapter in ("base", "spectran")]
    choices = [project.root / f"grid/tuned/{name}.yaml" for name in names]
    space = project.root / "grid/space.yaml"
    # A choice for another budget, seed or space is invalid: the grid tunes again before it reports that all is up to date.
    for file, old, new in (
        (params, "    trials: 2", "    trials: 3"),
        (params, "    trials: 3\n    seed: 0", "    trials: 3\n    seed: 5"),
        (space, "weight_decay: [0.0, ", "weight_decay: [0.0, 3.0e-04, "),
    ):
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
        printed = project.run(*grid)
        assert "all cells and tables are up to date" not in printed
        for name in names:
            assert f"{name} tuning: done" in printed
        assert "all cells and tables are up to date" in project.run(*grid)
    for choice in choices:
        conditions = yaml.safe_load(choice.read_text())["conditions"]
        assert (conditions["trials"], conditions["seeds"]) == (3, [5, 6])
        assert 3.0e-04 in conditions["space"]["train.weight_decay"]
    assert "with the same budget: 3 trials" in (project.root / "metrics/report.md").read_text()
    # A choice that was edited by hand is refused by the cell, and the grid writes it again from the trials.
    kept = choices[0].read_text()
    choices[0].write_text(re.sub(r"(?m)^  train.weight_decay: .*$", "  train.weight_decay: 99.0", kept, count=1))
    assert "train.weight_decay 99.0 is not in grid/space.yaml" in project.run(
        "dvc", "repro", f"grid/dvc.yaml:tuned@{names[0]}", fails=True
    )
    project.run(*grid)
    assert choices[0].read_text() == kept
    project.run("git", "checkout", "-q", "grid/space.yaml")
    project.run("git", "checkout", "-q", "params.yaml", "metrics")
    assert "all cells and tables are up to date" in project.run(*grid)
    assert not (project.root / "grid/cells/demo-sasrec-base-dims").exists(), "cells no longer listed are set aside"


@pytest.mark.slow
def test_another_dataset_and_back(project: Project) -> None:
    project.run("git", "checkout", "-q", "params.yaml")
    project.run("dvc", "repro")
    first = project.metrics()
    ran = project.ran(project.run("dvc", "exp", "run", "-S", "dataset=other"))
    assert sorted(ran) == sorted([*(f"{stage}@other" for stage in DATA), "validate", "check", "train", "evaluate", "aggregate"])
    assert project.metrics() != first
    shutil.rmtree(project.root / ".scratch")  # what comes back must come from DVC's run-cache
    back = project.run("dvc", "exp", "run", "-S", "dataset=demo")
    assert not {"train", "evaluate", "embed@demo", "svd@demo"} & set(project.ran(back)), back
    assert project.metrics() == first


@pytest.mark.slow
def test_another_encoder_reruns_embed_and_later_nothing_before(project: Project) -> None:
    project.run("git", "checkout", "-q", "params.yaml")
    ran = project.ran(project.run("dvc", "exp", "run", "evaluate", "-S", "encoder=minilm-cls"))
    assert sorted(ran) == sorted(["validate", "embed@demo", "svd@demo", "train", "evaluate"])
    back = project.ran(project.run("dvc", "exp", "run", "evaluate", "-S", "encoder=minilm"))
    assert not {"train", "embed@demo", "svd@demo"} & set(back)


@pytest.mark.slow
def test_another_template_embeds_again_and_downloads_nothing(project: Project) -> None:
    project.run("git", "checkout", "-q", "params.yaml")
    project.run("dvc", "repro", "data/dvc.yaml:svd@other")
    ran = project.ran(project.run("dvc", "exp", "run", "evaluate", "-S", 'templates.demo="{title}. {brand}"'))
    assert sorted(ran) == sorted(["validate", *(f"{stage}@demo" for stage in DATA[1:]), "train", "evaluate"])
    others = project.ran(project.run("dvc", "repro", "data/dvc.yaml:svd@other"))
    assert others == [], "the template of another dataset"
    project.run("git", "checkout", "-q", "params.yaml")


def test_an_unknown_name_is_refused_in_one_line_and_loses_nothing(project: Project) -> None:
    project.run("git", "checkout", "-q", "params.yaml")
    project.run("dvc", "repro")
    before = project.metrics()
    printed = project.run("dvc", "exp", "run", "evaluate", "-S", "dataset=dem", fails=True)
    assert "unknown dataset 'dem'; did you mean 'demo'?" in printed
    assert "Traceback" not in printed
    project.run("git", "checkout", "-q", "params.yaml")
    assert project.metrics() == before


@pytest.mark.slow
def test_a_dim_above_the_rank_is_refused_by_an_adapter_that_slices(project: Project) -> None:
    project.run("git", "checkout", "-q", "params.yaml")
    printed = project.run("dvc", "exp", "run", "evaluate", "-S", "adapter=spectran", "-S", "dim=2000", fails=True)
    assert re.search(r"adapter spectran: dim is 2000, but the embeddings have rank \d+; choose dim <= \d+", printed)
    assert "Traceback" not in printed


def test_a_no_op_costs_no_import_of_torch(project: Project) -> None:
    """Finding finished runs and building cells from them does not import torch."""
    code = (
        "import sys; sys.argv=['cell','demo','sasrec','base']; from stages.cell import main; print(main()); "
        "sys.exit('torch' in sys.modules)"
    )
    project.run("git", "checkout", "-q", "params.yaml")
    project.run(sys.executable, "-m", "stages.cell", "demo", "sasrec", "base")
    project.run(sys.executable, "-c", code)
