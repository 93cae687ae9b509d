"""Tables and verdicts of published results inside Markdown files, written from `docs/results/*`.

A block starts with a comment that lists its columns, one a line, and ends with another comment:

    <!-- results:
    office NDCG@20 "Office"
    smollm2/toys NDCG@20 "Toys, SmolLM2"
    -->
    <!-- end of results -->

A column is a folder of docs/results (followed by `/dataset` if it holds several), a column of its runs.csv, and a heading. Five
names stand for other figures: `paper/DATASET/BACKBONE` for the published ones in metrics/paper, `cold/DATASET` for
docs/results/cold, which holds what `python -m stages.cold` wrote, `groups/FOLDER/GROUP` for the users of one group in a
folder's groups.csv, such as `tail`: those whose test item is rare, `variants/FOLDER` for SpecTran's variants beside SpecTran and
Base, and `tuned/FOLDER/LOSS` for adapters that were tuned under a loss.

A block `ranks` has the same columns, one for each pair of dataset and backbone. Its table ends with the adapters' mean ranks, and
a sentence says what Friedman's and Nemenyi's tests find in them. If a picture is named, the ranks are drawn into it;
its path is seen from the document:

    <!-- ranks: figures/mean-ranks.svg
    office NDCG@20 "Office, SASRec"
    office-hstu NDCG@20 "Office, HSTU"
    -->
    <!-- end of ranks -->

A block `leaders` says of each folder, or of `tuned/FOLDER/LOSS`, who leads by NDCG, and how far an adapter is from the best
other one. The leader is sought among `every` adapter or among those of the `paper`:

    <!-- leaders: spectran paper NDCG@20
    office "Office, SASRec"
    -->
    <!-- end of leaders -->

A block `level` says who leads by the NDCG of each ranking, and who is level with it or above it, by several metrics:

    <!-- level: paper NDCG@20 HR@20 dot_NDCG@20
    office "Office, SASRec"
    -->
    <!-- end of level -->

A block `parts` says what each of SpecTran's variants loses against SpecTran, tested over users:

    <!-- parts: 20
    office "Office"
    -->
    <!-- end of parts -->

A verdict is the one with which the report of a folder opens:

    <!-- verdict: office -->
    <!-- end of verdict -->
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from common.errors import UserError
from common.names import check_form
from models.adapters import ADAPTERS
from pipeline.artifacts import atomic_file, verify
from pipeline.grid.cells import SPECTRAN
from pipeline.grid.published import PUBLISHED, read_runs, read_table
from pipeline.grid.tables import read_csv_table
from pipeline.report import captions
from pipeline.report.leaders import PROTOCOL, PublishedSet, leaders_table, level_table
from pipeline.report.mean_ranks import MeanRanks, mean_ranks
from pipeline.report.paper import paper_table
from pipeline.report.titles import TITLES, title
from pipeline.report.users import GROUPED
from pipeline.report.variants import parts_table

DOCUMENTS = tuple(Path(name) for name in ("README.md", "docs/results.md", "docs/results-details.md", "docs/research.md"))
LISTS = ("results", "ranks", "leaders", "level", "parts")  # kinds of blocks whose comment lists columns or folders
BLOCK = re.compile(rf"^(<!-- ({'|'.join(LISTS)}):([^\n]*)\n(.*?)^-->\n)(.*?)(^<!-- end of \2 -->$)", re.MULTILINE | re.DOTALL)
FOLDER = re.compile(r'(?P<folder>[^ ]+) "(?P<heading>[^"|]*)"')
VERDICT = re.compile(r"^(<!-- verdict: (\S+) -->\n)(.*?)(^<!-- end of verdict -->$)", re.MULTILINE | re.DOTALL)
OPENING = re.compile(r"# [^\n]+\n\n(?:\*[^\n]+\*\n\n)?([^\n]+)\n")  # heading, what the report is of, verdict
WIDTH = 98  # columns
MEAN_RANK = "Mean rank"
PICTURE = re.compile(r"figures/[a-z0-9-]+\.svg")
COLUMN = re.compile(r'(?P<folder>[^ /]+)(?:/(?P<dataset>[^ ]+))? (?P<metric>[^ ]+) "(?P<heading>[^"|]*)"')


@dataclass(frozen=True)
class Column:
    """One column of a block: a figure of every adapter in a published folder, from runs with the settings of params.yaml."""

    folder: str
    dataset: str | None
    metric: str
    heading: str

    def runs(self) -> pl.DataFrame:
        """Return the runs, one row each. Raises UserError if there are none or if they mix datasets, backbones or dims.

        Of the paper, a row is an adapter's published figures.
        """
        where = f"{PUBLISHED / self.folder}: column {self.heading!r}"
        if self.folder == "paper":
            dataset, _, backbone = str(self.dataset).partition("/")
            runs = paper_table("table2").filter(dataset=dataset, backbone=backbone)
        elif self.folder == "cold":
            runs = cold_table(check_form("dataset", str(self.dataset)))
        elif self.folder == "groups":
            folder, _, group = str(self.dataset).partition("/")
            runs = groups_table(check_form("folder", folder), group)
        elif self.folder == "variants":
            runs = variants_table(check_form("folder", str(self.dataset)))
        elif self.folder == "tuned":
            runs = PublishedSet.named(f"tuned/{self.dataset}").runs()
        else:
            runs = PublishedSet.named(self.folder).runs()
            runs = runs.filter(dataset=self.dataset) if self.dataset else runs
        if not runs.height:
            raise UserError(f"{where}: no runs{f' of {self.dataset}' if self.dataset else ''}")
        if self.metric not in runs.columns:
            raise UserError(f"{where}: there is no {self.metric}, only {', '.join(runs.columns)}")
        for key in {"dataset", "backbone", "encoder", "dim", *PROTOCOL} & set(runs.columns):
            if runs[key].n_unique() > 1:
                raise UserError(f"{where} mixes several values of {key}: {', '.join(map(str, runs[key].unique().sort()))}")
        return runs

    def means(self) -> pl.DataFrame:
        """Return each adapter's mean and sample standard deviation over seeds, null for one seed."""
        runs = self.runs()
        if self.folder == "groups":  # its rows are means
            return runs.select("adapter", mean=pl.col(self.metric), std=pl.col(f"std {self.metric}"))
        of_adapters = runs.group_by("adapter", maintain_order=True)
        return of_adapters.agg(mean=pl.col(self.metric).mean(), std=pl.col(self.metric).std())

    def entries(self) -> dict[str, str]:
        """Return each adapter's entry: the mean over seeds, ± the sample standard deviation for several, the best one bold."""
        by_adapter = self.means()
        ranked = self.metric.rpartition("_")[2].startswith(("NDCG", "HR", "MRR"))
        best = by_adapter["mean"].max()
        entries = {}
        for row in by_adapter.iter_rows(named=True):
            mean = f"{row['mean']:.4f}" if ranked else f"{row['mean']:.0f}"
            bold = f"**{mean}**" if ranked and row["mean"] == best else mean
            entries[row["adapter"]] = f"{bold} ± {row['std']:.4f}" if ranked and row["std"] is not None else bold
        return entries


def cold_table(dataset: str) -> pl.DataFrame:
    """Return a row per method for items held out of training; where IDs have a choice, they are zero, as in serving."""
    file = PUBLISHED / "cold" / f"{dataset}.csv"
    if not file.is_file():
        raise UserError(
            f"{file} is missing; it is a copy of metrics/cold/{dataset}/cold.csv, which `python -m stages.cold` writes"
        )
    rows = read_csv_table(file).with_columns(pl.col("ids").fill_null(""))
    return rows.filter(pl.col("ids").is_in(["", "zero"])).rename({"method": "adapter"})


def groups_table(folder: str, group: str) -> pl.DataFrame:
    """Return a row per adapter of a published folder for the users of a group.

    A column per metric, such as "HR@20", has the mean over seeds, and one with "std" before it the sample standard deviation.
    """
    rows = read_table(PUBLISHED / folder, GROUPED).filter(group=group)
    table = rows.pivot(on="metric", index=["dataset", "backbone", "adapter"], values=["mean", "std"], separator=" ")
    return table.rename(lambda name: name.removeprefix("mean "))


def variants_table(folder: str) -> pl.DataFrame:
    """Return a row per run of SpecTran's variants, with the variant as `adapter`, and of SpecTran and Base in the same folder."""
    runs = read_runs(PUBLISHED / folder)
    variants = runs.filter(over="variants").with_columns(adapter="variant")
    return pl.concat([runs.filter(pl.col("over") == "seeds", pl.col("adapter").is_in(["base", SPECTRAN])), variants])


def parse_columns(text: str, where: str) -> list[Column]:
    """Return the columns that a block's comment lists.

    Raises UserError if it lists none, for one that is not `FOLDER METRIC "HEADING"`, and for a heading that another one has.
    """
    columns = []
    for part in _lines(text, where):
        match = COLUMN.fullmatch(part.strip())
        if match is None:
            raise UserError(f'{where}: {part.strip()!r} is no column; write FOLDER METRIC "HEADING"')
        columns.append(Column(**match.groupdict()))
    headings = [column.heading for column in columns]
    for heading in headings:
        if headings.count(heading) > 1 or heading == MEAN_RANK:
            raise UserError(f"{where}: the heading {heading!r} is taken; every column needs its own")
    return columns


def table(columns: list[Column]) -> str:
    """Return the Markdown table: methods without training, adapters in the registry's order, variants."""
    return table_of({column.heading: column.entries() for column in columns})


def ranks_of(columns: list[Column], where: str) -> MeanRanks:
    """Return the mean ranks of the adapters that every column has. Raises UserError for too few to rank."""
    keys = [pl.lit(column.heading).alias("dataset") for column in columns]
    means = [column.means().select("adapter", "mean", key) for column, key in zip(columns, keys, strict=True)]
    found = mean_ranks(pl.concat(means).with_columns(backbone=pl.lit(""), metric=pl.lit("")), "")
    if found is None:
        raise UserError(f"{where}: mean ranks need two columns and three adapters that all of them have")
    return found


def ranks_table(columns: list[Column], where: str, picture: str | None = None) -> str:
    """Return the Markdown table with mean ranks, what the tests find in them, and the picture. Raises UserError as `ranks_of`."""
    found = ranks_of(columns, where)
    best = found.ranks["rank"].min()
    ranks = {name: f"**{rank:.2f}**" if rank == best else f"{rank:.2f}" for name, rank in found.ranks.iter_rows()}
    rows = table_of({**{column.heading: column.entries() for column in columns}, MEAN_RANK: ranks})
    text = f"Mean ranks over {found.blocks} pairs, with the critical difference from the first"
    shown = f"\n![{text}]({picture})\n" if picture else ""
    return f"{rows}\n{textwrap.fill(captions.mean_ranks(found), WIDTH)}\n{shown}"


def draw_ranks(found: MeanRanks, file: Path) -> bool:
    """Draw mean ranks into an SVG file; return whether it changed."""
    from pipeline.report.canvas import Canvas
    from pipeline.report.overviews import draw_mean_ranks  # imports matplotlib, which is slow

    with TemporaryDirectory() as directory:
        draw_mean_ranks(Canvas(Path(directory)), found)
        drawn = (Path(directory) / "mean-ranks.svg").read_bytes()
    if file.is_file() and file.read_bytes() == drawn:
        return False
    with atomic_file(file) as partial:
        partial.write_bytes(drawn)
    return True


def parse_folders(text: str, where: str) -> dict[str, PublishedSet]:
    """Return {heading: published set} of a block `leaders`, `level` or `parts`.

    Raises UserError if it lists none, for a line that is not `FOLDER "HEADING"`, and for a heading that another one has.
    """
    folders: dict[str, PublishedSet] = {}
    for part in _lines(text, where):
        match = FOLDER.fullmatch(part.strip())
        if match is None:
            raise UserError(f'{where}: {part.strip()!r} is no folder; write FOLDER "HEADING"')
        if match["heading"] in folders:
            raise UserError(f"{where}: the heading {match['heading']!r} is taken; every folder needs its own")
        folders[match["heading"]] = PublishedSet.named(match["folder"])
    return folders


def _lines(text: str, where: str) -> list[str]:
    """Return the lines of a block's comment. Raises UserError if there are none."""
    if not text.strip():
        raise UserError(f"{where}: a block lists nothing; write a line for each column")
    return text.strip().splitlines()


def table_of(columns: dict[str, dict[str, str]]) -> str:
    """Return the Markdown table of entries by heading and adapter."""
    entries = list(columns.values())
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    named = list(dict.fromkeys(name for of in entries for name in of))
    untrained = [name for name in named if name not in TITLES]
    variants = [name for name in named if name in TITLES and name not in ADAPTERS]
    for name in [*untrained, *(name for name in ADAPTERS if name in named), *variants]:
        lines.append(f"| {title(name)} | " + " | ".join(of.get(name, "–") for of in entries) + " |")
    return "\n".join(lines) + "\n"


def verdict(name: str) -> str:
    """Return the verdict of a published report, wrapped. Raises UserError if nothing is published under that name."""
    report = PUBLISHED / check_form("folder", name) / "report.md"
    if not report.is_file():
        raise UserError(f"{report} is missing: no results are published as {name}")
    verify(report.parent, f"`python -m stages.publish {name}`", [report.name])
    found = OPENING.match(report.read_text(encoding="utf-8"))
    if found is None:
        raise UserError(f"{report} does not open with a verdict; `python -m stages.publish {name}` writes it")
    return textwrap.fill(found[1], WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def filled(text: str, where: str) -> str:
    """Return a document's text with every block written anew. Raises UserError for a block that cannot be read."""
    found = [match[2] for match in BLOCK.finditer(text)] + ["verdict"] * len(VERDICT.findall(text))
    for kind in (*LISTS, "verdict"):
        if text.count(f"<!-- {kind}:") != found.count(kind):
            raise UserError(f"{where}: a block of {kind} does not end with <!-- end of {kind} -->")
    text = BLOCK.sub(lambda match: f"{match[1]}\n{_listed(match[2], match[3].split(), match[4], where)}\n{match[6]}", text)
    return VERDICT.sub(lambda match: f"{match[1]}\n{verdict(match[2])}\n{match[4]}", text)


def _listed(kind: str, about: list[str], lines: str, where: str) -> str:
    """Return the table of a block of LISTS. about: the words after its kind; lines: what its comment lists."""
    match kind, about:
        case "results", []:
            return table(parse_columns(lines, where))
        case "ranks", []:
            return ranks_table(parse_columns(lines, where), where)
        case "ranks", [picture] if PICTURE.fullmatch(picture):
            return ranks_table(parse_columns(lines, where), where, picture)
        case "leaders", [adapter, among, metric]:
            return leaders_table(adapter, among, parse_folders(lines, where), metric, where)
        case "level", [among, metric, *metrics]:
            return level_table(among, parse_folders(lines, where), [metric, *metrics])
        case "parts", [cutoff] if cutoff.isascii() and cutoff.isdigit() and int(cutoff):
            return parts_table(parse_folders(lines, where), int(cutoff))
    raise UserError(
        f"{where}: {kind}: {' '.join(about)} is not what a block of {kind} starts with; see pipeline/report/blocks.py"
    )


def write_blocks() -> list[Path]:
    """Write all blocks of DOCUMENTS, and their pictures, anew; return the files that changed."""
    changed = []
    for path in DOCUMENTS:
        before = path.read_text(encoding="utf-8")
        after = filled(before, str(path))
        for match in BLOCK.finditer(after):
            if match[2] == "ranks" and (name := match[3].strip()):
                picture = path.parent / name
                changed += [picture] if draw_ranks(ranks_of(parse_columns(match[4], str(path)), str(path)), picture) else []
        if after != before:
            with atomic_file(path) as partial:
                partial.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed
