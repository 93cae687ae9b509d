"""params.yaml is typed; every mistake in it is one line that names the parameter and the nearest valid name."""

import datetime
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from common.errors import UserError
from models.adapters import ADAPTERS, spectran
from models.backbones import BACKBONES
from pipeline.data import PREPROCESSING, SOURCES
from pipeline.params import Params, Preprocess, Resources, Variant, load_params, read_yaml

ROOT = Path(__file__).parents[2]
REPOSITORY = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
REGISTRIES = {"adapters": ADAPTERS, "backbones": BACKBONES}
SECTIONS = [(section, name) for section, registry in REGISTRIES.items() for name in registry]


def with_value(parameter: str, value: Any) -> dict[str, Any]:
    values = yaml.safe_load(yaml.safe_dump(REPOSITORY))
    *path, last = parameter.split(".")
    section = values
    for part in path:
        section = section[part]
    section[last] = value
    return values


def complaint(values: Any) -> str:
    with pytest.raises(UserError) as caught:
        Params.parse(values, "params.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("params.yaml: ")
    return message


def test_the_repositorys_parameters_are_valid() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.dataset in params.sources
    assert params.train.patience == 10
    assert params.train.epochs == 200


@pytest.mark.parametrize("section", REGISTRIES)
def test_every_registered_name_has_a_section_and_every_section_a_registered_name(section: str) -> None:
    assert set(REPOSITORY[section]) == set(REGISTRIES[section])


@pytest.mark.parametrize(("section", "name"), SECTIONS)
def test_a_section_lists_exactly_the_options_of_its_class_and_they_are_valid(section: str, name: str) -> None:
    config = REGISTRIES[section].load(name).Config
    options = REPOSITORY[section][name]
    config.parse(options, name)
    assert set(options) == set(config.model_fields), "an option missing here cannot be found by someone who reads params.yaml"
    assert config.parse(options, name) == config(), "the class documents other defaults than params.yaml uses"


@pytest.mark.parametrize(("section", "name"), SECTIONS)
def test_every_option_is_described(section: str, name: str) -> None:
    for option, field in REGISTRIES[section].load(name).Config.model_fields.items():
        assert field.description, f"{section}.{name}.{option}"


@pytest.mark.parametrize(
    ("parameter", "found", "nearest"),
    [
        ("datset", "datset", "dataset"),
        ("train.epoch", "epoch", "epochs"),
        ("train.learnng_rate", "learnng_rate", "learning_rate"),
        ("preprocess.cores", "cores", "core"),
        ("evaluate.cutoff", "cutoff", "cutoffs"),
        ("grid.seed", "seed", "seeds"),
        ("svd.rank_tol", "rank_tol", "rank_rtol"),
        ("download.miror", "miror", "mirror"),
        ("sources.demo.user", "user", "users"),
        ("sources.toys.nam", "nam", "name"),
        ("encoders.minilm.poolin", "poolin", "pooling"),
        ("backbones.sasrek", "sasrek", "sasrec"),
        ("adapters.spectrann", "spectrann", "spectran"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(parameter: str, found: str, nearest: str) -> None:
    message = complaint(with_value(parameter, {}))
    assert f"'{found}'" in message
    assert f"did you mean '{nearest}'?" in message


@pytest.mark.parametrize(
    ("parameter", "value", "nearest"),
    [
        ("dataset", "demoo", "demo"),
        ("encoder", "minilmm", "minilm"),
        ("backbone", "sasrek", "sasrec"),
        ("adapter", "spectra", "spectran"),
        ("grid.datasets", ["demo", "tois"], "toys"),
        ("templates", {"tois": "{title}"}, "toys"),
        ("grid.backbones", ["sasrecc"], "sasrec"),
        ("grid.adapters", ["base", "alphafus"], "alphafuse"),
        ("grid.ablations.datasets", ["offic"], "office"),
        ("grid.dimensions.adapters", ["spectra"], "spectran"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_nearest_name(parameter: str, value: Any, nearest: str) -> None:
    message = complaint(with_value(parameter, value))
    assert f"did you mean '{nearest}'?" in message
    assert (value if isinstance(value, str) else list(value)[-1]) in message


def test_the_grid_may_list_every_variant_that_spectran_has() -> None:
    assert set(get_args(Variant)) == set(get_args(spectran.Variant))


@pytest.mark.parametrize(("suffix", "stage"), [("cold", "cold"), ("retrained", "retrain")])
def test_a_dataset_that_a_stage_would_replace_is_refused(suffix: str, stage: str) -> None:
    """`python -m stages.cold` of `demo` writes the dataset `demo-cold`."""
    demo = REPOSITORY["sources"]["demo"]
    message = complaint(with_value("sources", REPOSITORY["sources"] | {f"demo-{suffix}": demo}))
    assert f"sources.demo-{suffix}: `python -m stages.{stage}` of demo would replace its files; rename it" in message
    Params.parse(with_value("sources", REPOSITORY["sources"] | {f"my-{suffix}": demo}), "params.yaml")


def test_where_no_name_is_near_all_are_listed() -> None:
    message = complaint(with_value("dataset", "zzzzzz"))
    assert all(name in message for name in REPOSITORY["sources"])


@pytest.mark.parametrize(("section", "name"), SECTIONS)
def test_an_unknown_option_of_an_adapter_or_backbone_is_refused_by_its_class(section: str, name: str) -> None:
    config = REGISTRIES[section].load(name).Config
    option, *_ = [*sorted(config.model_fields), "option"]
    expected = f"did you mean '{option}'" if config.model_fields else "valid: none"
    with pytest.raises(UserError, match=f"{section}.{name}: unknown parameter '{option}s'; {expected}") as caught:
        config.parse({option + "s": 1}, f"params.yaml: {section}.{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("dim", 0, "dim: .*greater than or equal to 1, found 0"),
        ("dim", -3, "dim: .*found -3"),
        ("dim", "wide", "dim: .*integer.*found 'wide'"),
        ("dim", 1.5, "dim: .*integer.*found 1.5"),
        ("dim", None, "dim: .*found None"),
        ("seed", -1, "seed: .*found -1"),
        ("grid.dim", 0, "grid.dim: .*found 0"),
        ("grid.seeds", [], "grid.seeds: .*found \\[\\]"),
        ("grid.adapters", "base", "grid.adapters: .*list.*found 'base'"),
        ("grid.seeds", [0, 0], "grid: seeds lists 0 twice"),
        ("grid.dimensions.dims", [16, 8, 16], "grid: dimensions.dims lists 16 twice"),
        ("grid.ablations.variants", ["without"], "grid.ablations.variants.0: .*'without_attention'.*found 'without'"),
        ("evaluate.cutoffs", [10, 0], "evaluate.cutoffs.1: .*found 0"),
        ("evaluate.similarity", "cos", "evaluate.similarity: .*'cosine' or 'dot'.*found 'cos'"),
        ("train.exclude_history", True, "train: unknown parameter 'exclude_history'"),
        ("train.learning_rate", float("nan"), "train.learning_rate: .*finite.*found nan"),
        ("train.temperature", 0.0, "train.temperature: .*found 0.0"),
        ("train", None, "train: "),
        ("preprocess.core", 2, "preprocess.core: .*found 2"),
        ("preprocess.cap", 3, "preprocess.cap: .*found 3"),
        ("preprocess.ties", "random", "preprocess.ties: .*found 'random'"),
        ("svd.rank_rtol", 1.0, "svd.rank_rtol: .*found 1.0"),
        ("sources.demo.kind", "dmo", "sources.demo: unknown kind of source 'dmo'; did you mean 'demo'\\?$"),
        ("sources.demo.kind", "../x", "sources.demo: kind of source '../x' is not a valid name"),
        ("sources.demo.kind", 3, "sources.demo: kind of source 3 is not a valid name"),
        (
            "sources.demo",
            {"items": 100},
            "sources.demo: a source needs a kind; valid: amazon2014, demo, files; found {'items': 100}",
        ),
        ("sources.demo", None, "sources.demo: a source needs a kind; .*found None"),
        ("sources.demo.items", 3, "sources.demo.items: .*greater than or equal to 50, found 3"),
        ("sources.toys", {"kind": "amazon2014"}, "sources.toys.name: .*required"),
        ("templates.toys", "no field", "templates.toys: a template has at least one field, as in '{title}', found 'no field'"),
        ("templates.toys", "{title", "templates.toys: .*expected '}'"),
        ("templates.toys", None, "templates.toys: .*string.*found None"),
        ("encoders.minilm.batch_tokens", 0, "encoders.minilm.batch_tokens: .*found 0"),
        ("encoders.minilm.device_map", "cuda", "encoders.minilm.device_map: .*'auto'.*found 'cuda'"),
        ("encoders.minilm.pooling", "max", "encoders.minilm.pooling: .*'mean', 'last' or 'cls'.*found 'max'"),
    ],
)
def test_an_impossible_value_names_its_place_and_what_was_found(parameter: str, value: Any, expected: str) -> None:
    message = complaint(with_value(parameter, value))
    assert re.search(expected, message), message


def test_a_missing_section_is_named() -> None:
    values = with_value("dim", 64)
    del values["train"]
    assert "train: Field required" in complaint(values)


def test_a_missing_file_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"params.yaml not found in .*; run stages from the project's root"):
        load_params()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no parameters"),
        (b"# only a comment\n", "holds no parameters"),
        (b"- a\n- list\n", "holds no parameters"),
        (b"dataset: [demo\nencoder: x", "not valid YAML"),
        (b"dataset: demo\n\tencoder: minilm\n", "not valid YAML"),
        (b"dataset: caf\xe9\n", "not valid"),
        (b"dataset: \x00demo\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        load_params(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_section_of_sources_is_what_its_kind_wants_and_is_dumped_whole() -> None:
    """The dump is part of the sidecar of the downloaded files."""
    sources = load_params(ROOT / "params.yaml").sources
    assert {name: source.model_dump(exclude={*PREPROCESSING, "sha256"}) for name, source in sources.items()} == REPOSITORY[
        "sources"
    ]
    for kind in SOURCES:
        for option, field in SOURCES.load(kind).model_fields.items():
            assert option in ("kind", "seed") or field.description, f"{kind}.{option}"


def test_importing_parameters_and_runs_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'polars', 'transformers', 'pandas', 'matplotlib'}"
    code = f"import sys, pipeline.params, pipeline.runs; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_own_files_keep_the_order_of_their_rows_unless_their_section_says_otherwise() -> None:
    own = {"kind": "files", "interactions": "log.csv", "items": "items.csv"}
    values = with_value("sources.mine", own)
    values["sources"]["other"] = own | {"ties": "item"}
    values["preprocess"]["cap"] = 20
    params = Params.parse(values, "params.yaml")
    assert params.preprocessing("mine") == Preprocess(core=5, cap=20, ties="file")
    assert params.preprocessing("other").ties == "item"
    assert params.preprocessing("office").ties == params.preprocess.ties == "shuffled"
    with pytest.raises(UserError, match="unknown dataset 'mime'; did you mean 'mine'"):
        params.preprocessing("mime")


def test_no_name_of_a_shipped_encoder_has_a_dot() -> None:
    """DVC splits the names of parameters at dots, so it looks up `encoders.a.b` as b in a."""
    assert [name for name in load_params(ROOT / "params.yaml").encoders if "." in name] == []


# ------------------------------------------------------------------------------------------------------------ types and bounds


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("dim", True, "dim: expected a number, found true"),
        ("train.epochs", True, "train: epochs: expected a number, found true"),
        ("train.learning_rate", False, "train: learning_rate: expected a number, found false"),
        ("svd.rank_rtol", True, "svd: rank_rtol: expected a number, found true"),
        ("grid.seeds", [0, True], "grid: seeds: expected a number, found true"),
        ("seed", 2**63, f"seed: expected at most {2**63 - 1}, found {2**63}"),
        ("seed", -1, "seed: Input should be greater than or equal to 0, found -1"),
        ("sources.demo.seed", 2**64, f"seed: expected at most {2**63 - 1}, found {2**64}"),
        ("grid.seeds", [2**63], f"grid: seeds: expected at most {2**63 - 1}, found {2**63}"),
        ("dim", 2**16 + 1, "dim: Input should be less than or equal to 65536, found 65537"),
        ("grid.dim", 2**63 - 1, "grid.dim: Input should be less than or equal to 65536"),
        ("grid.dimensions.dims", [2**17], "grid.dimensions.dims.0: Input should be less than or equal to 65536, found 131072"),
        (
            "encoders.minilm.revision",
            datetime.date(2020, 2, 2),
            "encoders.minilm.revision: Input should be a valid string, found",
        ),
        ("evaluate", None, "evaluate: Input should be a valid dictionary"),
    ],
)
def test_a_value_of_another_type_or_size_is_refused(parameter: str, value: Any, expected: str) -> None:
    assert expected in complaint(with_value(parameter, value))


@pytest.mark.parametrize("adapter", ["base", "spectran"])
def test_an_option_of_an_adapter_is_no_boolean_either(adapter: str) -> None:
    with pytest.raises(UserError, match=r"^here: id_std: expected a number, found true$"):
        ADAPTERS.load(adapter).Config.parse({"id_std": True}, "here")


@pytest.mark.parametrize(("parameter", "value"), [("seed", 2**63 - 1), ("dim", 2**16), ("encoders.minilm.normalise", True)])
def test_the_largest_values_and_real_booleans_are_taken(parameter: str, value: Any) -> None:
    Params.parse(with_value(parameter, value), "params.yaml")


@pytest.mark.parametrize("name", sorted({*REPOSITORY} - {"download"}))
def test_a_missing_section_is_one_short_line(name: str) -> None:
    values = {key: value for key, value in REPOSITORY.items() if key != name}
    assert complaint(values) == f"params.yaml: {name}: Field required"


def test_a_long_value_is_shown_in_part() -> None:
    assert len(complaint(with_value("dataset", ["x" * 10_000] * 100))) < 1000


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 20_000, "{" * 5_000, "a: 2020-02-30", "a: !!int ''", "a: !!bool x", "a: !!timestamp x", "a: " + "9" * 5000),
        *("a: !!python/object/apply:os.system [x]", "? [a]\n: b"),
    ],
)
def test_yaml_that_cannot_be_read_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params.yaml is not valid YAML: ") as caught:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mirror", ["https://ada:hunter2@example.org/x", "https://example.org/x?token=hunter2"])
def test_a_secret_has_no_place_where_git_and_dvc_keep_it(mirror: str) -> None:
    says = complaint(with_value("download.mirror", mirror))
    assert "put it into ~/.netrc" in says
    assert "hunter2" not in says


def test_gpus_come_in_shares_of_one_or_whole() -> None:
    assert Resources(gpus=0.25).gpus == 0.25
    assert Resources(gpus=2).gpus == 2
    with pytest.raises(UserError, match="params: gpus: expected a fraction of one GPU, or a whole number of GPUs"):
        Resources.parse({"gpus": 1.5}, "params")


def test_a_column_may_have_a_name_that_yaml_once_took_for_true_or_false(tmp_path: Path) -> None:
    """DVC writes it without quotes, by YAML 1.2."""
    (tmp_path / "params.yaml").write_text("item_id: No\ntitle: on\nkept: true\nleft_out: False\nfile: false/x.csv\n")
    read = read_yaml(tmp_path / "params.yaml")
    assert read == {"item_id": "No", "title": "on", "kept": True, "left_out": False, "file": "false/x.csv"}
