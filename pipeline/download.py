"""Sources of interactions and titles: the Amazon 2014 files, the built-in demo, a user's own files."""

import gzip
import shutil
import zlib
from pathlib import Path

import polars as pl
from tqdm import tqdm

from models.errors import UserError, did_you_mean
from pipeline import demo
from pipeline.artifacts import main_checkout, scratch
from pipeline.params import Amazon2014, Demo, Download, Files, Source

AMAZON2014 = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
TRIES = 5
CHUNK = 1 << 20  # bytes


def amazon2014_files(name: str) -> tuple[str, str]:
    """File names of a category: 5-core reviews and metadata."""
    return f"reviews_{name}_5.json.gz", f"meta_{name}.json.gz"


def fetch_source(source: Source, options: Download, directory: Path) -> None:
    """Bring a source's files into `directory`, complete and checked."""
    match source:
        case Demo():
            interactions, items = demo.generate(source.seed, source.items, source.users)
            interactions.write_parquet(directory / "interactions.parquet")
            items.write_parquet(directory / "items.parquet")
        case Amazon2014():
            for file in amazon2014_files(source.name):
                _fetch(file, options.mirror, directory / file)
                check_gzip(directory / file)
        case Files():
            for name, path, columns in (
                ("interactions", source.interactions, {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}),
                ("items", source.items, {"item_id": pl.String, "title": pl.String}),
            ):
                read_table(main_checkout() / path, columns).write_parquet(directory / f"{name}.parquet")


def read_table(path: Path, columns: dict[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    """Read the named columns of a Parquet or CSV file, cast; raise UserError that names file and column."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: not a readable {path.suffix or 'CSV'} file ({str(error).splitlines()[0]})") from None
    for column, kind in columns.items():
        if column not in table.columns:
            raise UserError(f"{path}: column '{column}' is missing{did_you_mean(column, table.columns)}")
        try:
            table = table.with_columns(pl.col(column).cast(kind))
        except pl.exceptions.PolarsError:
            raise UserError(f"{path}: column '{column}' cannot be read as {kind}") from None
    return table.select(list(columns))


def _fetch(file: str, mirror: str | None, target: Path) -> None:
    if mirror is None or "://" in mirror:
        _download((mirror or AMAZON2014).rstrip("/") + "/" + file, target)
        return
    folder = main_checkout() / mirror
    if not (folder / file).is_file():
        raise UserError(f"download.mirror: {folder / file} not found; point the mirror at a folder that holds it")
    shutil.copyfile(folder / file, target)


def _download(url: str, target: Path) -> None:
    """Download with pooch: retried, resumed from what an earlier try or run left in scratch, whole or not at all."""
    import pooch
    import requests

    # Its retries would be announced one by one.
    pooch.get_logger().setLevel("ERROR")
    folder, _, name = url.rpartition("/")
    store = pooch.create(path=target.parent, base_url=folder + "/", registry={name: None}, retry_if_failed=TRIES - 1)
    try:
        store.fetch(name, downloader=_resume)
    except requests.exceptions.RequestException as error:
        reason = getattr(error.response, "reason", None) or type(error).__name__
        raise UserError(
            f"cannot download {url} after {TRIES} tries ({reason}); what arrived is kept and continued next time; "
            "check the network, or set download.mirror to a folder or URL that holds the file"
        ) from None


def _resume(url: str, output: str, _pooch: object) -> None:
    """A downloader for pooch that continues a partial file of the same URL and the same version (ETag) of its content."""
    import requests

    part = scratch() / "downloads" / (url.partition("://")[2].replace("/", "_") + ".part")
    version = part.with_suffix(".etag")
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() and version.exists() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": version.read_text()} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        if not resumed:
            part.unlink(missing_ok=True)
            version.write_text(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
        have = have if resumed else 0
        expected = have + int(response.headers.get("Content-Length") or 0)
        with part.open("ab") as file, tqdm(
            total=expected or None, initial=have, unit="B", unit_scale=True, desc=url.rpartition("/")[2]
        ) as bar:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if expected > have and part.stat().st_size != expected:
        raise requests.exceptions.ConnectionError("the connection ended early")
    shutil.move(part, output)
    version.unlink(missing_ok=True)


def check_gzip(path: Path) -> None:
    """Read a gzip file to its end, so that length and CRC are checked; raise UserError where it is damaged."""
    try:
        with gzip.open(path) as file, tqdm(unit="B", unit_scale=True, desc=f"checking {path.name}", delay=2) as bar:
            while chunk := file.read(CHUNK):
                bar.update(len(chunk))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path.name} is truncated or damaged ({error}); fetch it again, or mend the mirror") from None
