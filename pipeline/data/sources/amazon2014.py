"""The Amazon 2014 review files (McAuley et al.): 5-core reviews and metadata of a category."""

import ast
import gzip
import re
import shutil
import time
import zlib
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field
from tqdm import tqdm

from common.errors import UserError
from pipeline.artifacts import main_checkout, scratch
from pipeline.data import Source
from pipeline.data.sources import Raw

SITE = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
TRIES = 5
PAUSE = 1.0  # s before the second try, twice as many before the third, …
CHUNK = 1 << 20  # bytes
DOWNLOAD_CHUNK = 1 << 16  # bytes; what a dropped connection can lose
ASIN = re.compile(rb"""['"]asin['"]:\s*['"]([^'"]+)['"]""")
FIELDS = ("title", "brand", "categories", "description")
MALFORMED_SHARE = 0.01  # of the metadata lines that are needed


class Amazon2014(Source):
    """A category of the Amazon 2014 reviews."""

    kind: Literal["amazon2014"]
    name: str = Field(description="category as the official files spell it, e.g. Toys_and_Games")


def files_of(source: Amazon2014) -> tuple[str, str]:
    """File names of a category: 5-core reviews and metadata."""
    return f"reviews_{source.name}_5.json.gz", f"meta_{source.name}.json.gz"


def fetch(source: Amazon2014, mirror: str | None, directory: Path) -> None:
    """Bring both files into `directory`, from the mirror or the official site, and check them to their last byte."""
    for file in files_of(source):
        _fetch(file, mirror, directory / file)
        check_gzip(directory / file)


def read(source: Amazon2014, directory: Path) -> Raw:
    """All reviews, and the fields of their items."""
    reviews, metadata = (directory / file for file in files_of(source))
    interactions = read_reviews(reviews)
    items, malformed = read_items(metadata, set(interactions["item_id"].unique()))
    return Raw(interactions, items, {"malformed_metadata_lines": malformed})


def _fetch(file: str, mirror: str | None, target: Path) -> None:
    if mirror is None or "://" in mirror:
        _download((mirror or SITE).rstrip("/") + "/" + file, target)
        return
    folder = main_checkout() / Path(mirror).expanduser()
    if not (folder / file).is_file():
        raise UserError(f"download.mirror: {folder / file} not found; point the mirror at a folder that holds it")
    shutil.copyfile(folder / file, target)


def _download(url: str, target: Path) -> None:
    """Download, up to TRIES times, going on with what an earlier try or run left in scratch. Raises UserError where all fail."""
    import requests

    for attempt in range(1, TRIES + 1):
        try:
            return _resume(url, target)
        except requests.exceptions.RequestException as error:
            if error.response is not None and error.response.status_code == requests.codes.not_found:
                raise UserError(f"{url} does not exist; check the source's name in params.yaml, or download.mirror") from None
            if attempt == TRIES:
                reason = getattr(error.response, "reason", None) or type(error).__name__
                raise UserError(
                    f"cannot download {url} after {TRIES} tries ({reason}); what arrived is kept and continued next time; "
                    "check the network, or set download.mirror to a folder or URL that holds the file"
                ) from None
            time.sleep(attempt * PAUSE)


def _resume(url: str, target: Path) -> None:
    """Download to `target`; go on with a partial file in scratch of the same URL and version (ETag) of its content."""
    import requests

    part = scratch() / "downloads" / (url.partition("://")[2].replace("/", "_") + ".part")
    version = part.with_suffix(".etag")
    part.parent.mkdir(parents=True, exist_ok=True)
    known = version.read_text() if part.exists() and version.exists() else ""
    have = part.stat().st_size if known else 0
    # Without a known version there is no telling whether the rest belongs to it. No encoding: the file itself is compressed.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-", "If-Range": known} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        current = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if resumed and current != known:
            part.unlink()
            raise requests.exceptions.ConnectionError("the file changed on the server")
        if not resumed:
            part.unlink(missing_ok=True)
            version.write_text(current)
        have = have if resumed else 0
        expected = have + int(response.headers.get("Content-Length") or 0)
        with (
            part.open("ab") as file,
            tqdm(total=expected or None, initial=have, unit="B", unit_scale=True, desc=url.rpartition("/")[2]) as bar,
        ):
            for chunk in response.iter_content(DOWNLOAD_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if expected > have and part.stat().st_size != expected:
        raise requests.exceptions.ConnectionError("the connection ended early")
    shutil.move(part, target)
    version.unlink(missing_ok=True)


def check_gzip(path: Path) -> None:
    """Read a gzip file to its end, so that length and CRC are checked; raise UserError where it is damaged."""
    try:
        if not path.stat().st_size:
            raise EOFError("it is empty")
        with gzip.open(path) as file, tqdm(unit="B", unit_scale=True, desc=f"checking {path.name}", delay=2) as bar:
            while chunk := file.read(CHUNK):
                bar.update(len(chunk))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path.name} is truncated or damaged ({error}); fetch it again, or mend the mirror") from None


def read_reviews(path: Path) -> pl.DataFrame:
    """Reviews, one JSON object a line, as user_id, item_id, timestamp."""
    schema = {"reviewerID": pl.String, "asin": pl.String, "unixReviewTime": pl.Int64}
    with gzip.open(path) as file:
        try:
            table = pl.read_ndjson(file.read(), schema=schema)
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{path.name}: not one JSON object a line ({str(error).splitlines()[0]})") from None
    table = table.rename({"reviewerID": "user_id", "asin": "item_id", "unixReviewTime": "timestamp"})
    missing = table.null_count().row(0)
    if any(missing):
        raise UserError(
            f"{path.name}: {max(missing)} reviews lack one of {', '.join(schema)}; the file is not a 2014 review file"
        )
    return table


def read_items(path: Path, needed: set[str]) -> tuple[pl.DataFrame, int]:
    """FIELDS of the needed items, and the number of their lines that are no Python literal.

    The official files list a whole category, one Python literal a line: only needed lines are parsed, by `literal_eval`, which
    runs nothing. A line without an ASIN counts as malformed. Raises UserError above a share of MALFORMED_SHARE.
    """
    wanted = {asin.encode() for asin in needed}
    found_fields: dict[str, list[str | None]] = {}
    malformed = parsed = 0
    with gzip.open(path) as file:
        for line in tqdm(file, unit=" lines", unit_scale=True, desc=f"reading {path.name}", delay=2):
            found = ASIN.search(line)
            if found and found[1] not in wanted:
                continue
            if not line.strip():
                continue
            parsed += 1
            try:
                record = ast.literal_eval(line.decode("utf-8"))
                found_fields[str(_text(record["asin"]))] = [
                    _text(record.get("title")),
                    _text(record.get("brand")),
                    _categories(record.get("categories")),
                    _text(record.get("description")),
                ]
            except (ValueError, SyntaxError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
                malformed += 1
    if malformed > MALFORMED_SHARE * max(parsed, 1):
        raise UserError(
            f"{path.name}: {malformed} of {parsed} needed lines are not Python literals with an 'asin' "
            f"(at most {MALFORMED_SHARE:.0%} are skipped); fetch the file again"
        )
    rows = [(asin, *values) for asin, values in found_fields.items()]
    return pl.DataFrame(rows, schema=dict.fromkeys(("item_id", *FIELDS), pl.String), orient="row"), malformed


def _text(value: object) -> str | None:
    """A string that UTF-8 can hold: a surrogate without its partner becomes U+FFFD."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else None


def _categories(value: object) -> str | None:
    """Paths of categories, e.g. [["Toys & Games", "Puzzles"]], as the names in them, each once."""
    paths = value if isinstance(value, list) else []
    names = [text for path in paths if isinstance(path, list) for name in path if (text := _text(name))]
    return ", ".join(dict.fromkeys(names)) or None
