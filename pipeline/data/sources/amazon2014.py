"""The Amazon 2014 review files (McAuley et al.): 5-core reviews and metadata of a category."""

import ast
import gzip
import re
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import Field
from tqdm import tqdm

from common.errors import UserError, first_line
from common.secrets import masked
from pipeline.artifacts import fingerprint, main_checkout, scratch, sha256
from pipeline.data import Source
from pipeline.data.sources import Raw

SITE = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
TRIES = 5
PAUSE = 1.0  # s before the second try, twice as many before the third, …
CHUNK = 1 << 20  # bytes
DOWNLOAD_CHUNK = 1 << 16  # bytes; what a dropped connection can lose
# Limits, far above what any file of the 2014 set needs: its largest has 20 GB, its lines compress about eightfold and hold less
# than 200 kB. They stop a wrong or hostile file before it fills the disk or the memory.
LARGEST_DOWNLOAD = 32 << 30  # bytes
LARGEST_EXPANSION = 100  # times the size of the gzip file, beyond SMALL
SMALL = 64 << 20  # bytes
LONGEST_LINE = 1 << 20  # bytes
PARSED_TOGETHER = 32 << 20  # bytes of reviews
# SHA-256 of the files that docs/results was computed from: the users, items, days and titles of the official files, without
# ratings and texts of reviews. No checksum of the official files themselves is published.
KNOWN = {
    "meta_Beauty.json.gz": "1348d17b5ae15b257aea684bbe7b0d9bb2e2dad08a81c52ce3a3b04efc2dc3c0",
    "meta_Clothing_Shoes_and_Jewelry.json.gz": "8a2fafd05b869233841c3e7e02a5985a54bf027af463a55872d9a9f3fcd31360",
    "meta_Office_Products.json.gz": "8245fabcf4ae39fe24f4d932b45bc461f0c3e33bfd5b8c8d9da6b337e6e26860",
    "meta_Toys_and_Games.json.gz": "a74c3033f49c08f8c58cac15c7b4a3e5a9c811be02d684dc3bea744e684bf9d5",
    "reviews_Beauty_5.json.gz": "4a1fbb7d4427e3bce9daa219dbba27b11b5e3960647f8df45fb2a101a5804ce4",
    "reviews_Clothing_Shoes_and_Jewelry_5.json.gz": "049ff0dc82ef8a2374da2192f7ee23e15b5d1229fef5933ae250a9b25d85913c",
    "reviews_Office_Products_5.json.gz": "2479d978084ce15e0830a383ee231820e1099016174c4c8da10f0dcf88ae06b7",
    "reviews_Toys_and_Games_5.json.gz": "c392c8c058c2a1449b4b2107c3719e8c6f59dbaacb5a4d9076ab4bfb065a8d2f",
}
GZIP = b"\x1f\x8b"  # the first bytes of a gzip file
ASIN = re.compile(rb"""['"]asin['"]:\s*['"]([^'"]+)['"]""")
FIELDS = ("title", "brand", "categories", "description")
MALFORMED_SHARE = 0.01  # of the metadata lines that are needed


Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Amazon2014(Source):
    """A category of the Amazon 2014 reviews."""

    kind: Literal["amazon2014"]
    name: str = Field(pattern="^[A-Za-z0-9_]+$", description="category as the official files spell it, e.g. Toys_and_Games")
    sha256: tuple[Checksum, Checksum] | None = Field(
        None,
        description="of the files of reviews and of metadata: `download` refuses others. Empty: a mirror's files "
        "must be those of docs/results, if the category is one of these",
    )


def files_of(source: Amazon2014) -> tuple[str, str]:
    """File names of a category: 5-core reviews and metadata."""
    return f"reviews_{source.name}_5.json.gz", f"meta_{source.name}.json.gz"


def fetch(source: Amazon2014, mirror: str | None, directory: Path) -> None:
    """Bring both files into `directory`, from the mirror or the official site, and check them to their last byte.

    Raises UserError for a file that cannot be had, is damaged or too large, or is not the one that `_check_identity` expects.
    """
    for file in files_of(source):
        _fetch(file, mirror, directory / file)
        check_gzip(directory / file)
    _check_identity(source, mirror, directory)


def _check_identity(source: Amazon2014, mirror: str | None, directory: Path) -> None:
    """Compare the checksums of both files with `source.sha256`, or if that is empty, with KNOWN.

    Without `source.sha256`, the official site is believed, and so is a mirror for a category of which no file is known; a note
    shows the checksums. A mirror's files that are not the known ones are refused: whoever trusts them writes these down.
    """
    files = files_of(source)
    found = [sha256(directory / file) for file in files]
    wanted = list(source.sha256 or [KNOWN.get(file) for file in files])
    wrong = [number for number, checksum in enumerate(wanted) if checksum and found[number] != checksum]
    pin = f"write under its source in params.yaml `sha256: [{', '.join(found)}]`"
    if not any(wanted):
        print(f"note: not verified: no checksums of {' and '.join(files)} are known; to refuse others, {pin}", file=sys.stderr)
    if not wrong:
        return
    is_not = f"{files[wrong[0]]} has SHA-256 {found[wrong[0]]}, not {wanted[wrong[0]]}"
    if source.sha256:
        raise UserError(f"{is_not} as `sha256` of its source in params.yaml says; fetch it from where that was taken")
    note = (
        f"{is_not} of the copy that docs/results was computed from (the official files differ from that copy: they also hold "
        f"ratings and texts); if you trust where it comes from, {pin}"
    )
    if mirror is not None:
        raise UserError(f"download.mirror: {note}")
    print(f"note: not verified: {note}", file=sys.stderr)


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
    try:
        folder = main_checkout() / Path(mirror).expanduser()
    except RuntimeError:  # of `~name`
        raise UserError(f"download.mirror: {mirror}: there is no home of that user; write the folder's whole path") from None
    if not (folder / file).is_file():
        raise UserError(f"download.mirror: {folder / file} not found; point the mirror at a folder that holds it")
    shutil.copyfile(folder / file, target)


def _download(url: str, target: Path) -> None:
    """Download, up to TRIES times, going on with what an earlier try or run left in scratch.

    Raises UserError if all tries fail, and at once where another try cannot succeed.
    """
    import requests

    scheme = url.partition("://")[0].lower()
    if scheme not in ("http", "https"):
        instead = ": leave out `file://`" if scheme == "file" else ""
        raise UserError(f"download.mirror: {scheme}:// is not supported; use http(s)://, or the path of a folder{instead}")
    # ValueError: an address that cannot be parsed, e.g. `http://[`.
    hopeless = (requests.exceptions.InvalidSchema, requests.exceptions.TooManyRedirects, ValueError)

    for attempt in range(1, TRIES + 1):
        try:
            return _resume(url, target)
        except hopeless as error:
            reason = masked(" ".join(str(error).split()))
            raise UserError(f"cannot download {url}: {reason}; it, and what it redirects to, must be http(s) addresses") from None
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

    name = url.rpartition("/")[2]
    part = scratch() / "downloads" / f"{fingerprint(url)}-{name}.part"  # an address may hold a password
    version = part.with_suffix(".etag")
    part.parent.mkdir(parents=True, exist_ok=True)
    known = version.read_text() if part.exists() and version.exists() else ""
    have = part.stat().st_size if known else 0
    # Without a known version there is no telling whether the rest belongs to it. No encoding: the file itself is compressed. A
    # server that names one all the same is read as it sends, since lengths and ranges are of what it sends.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-", "If-Range": known} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()
        response.raise_for_status()
        hops = [hop.url for hop in (*response.history, response)]
        if plain := [to for before, to in pairwise(hops) if before.lower().startswith("https:") and _is_plain(to)]:
            raise UserError(f"{url} redirects to {plain[0]}, which is not encrypted; name another download.mirror")
        resumed = response.status_code == requests.codes.partial_content
        current = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if resumed and current != known:
            part.unlink()
            raise requests.exceptions.ConnectionError("the file changed on the server")
        if not resumed:
            part.unlink(missing_ok=True)
            version.write_text(current)
        response.raw.headers.pop("Content-Encoding", None)  # else `iter_content` unpacks
        have = have if resumed else 0
        expected = have + int(response.headers.get("Content-Length") or 0)
        size = expected
        with (
            part.open("ab") as file,
            tqdm(total=expected or None, initial=have, unit="B", unit_scale=True, desc=name) as bar,
        ):
            for chunk in response.iter_content(DOWNLOAD_CHUNK):
                size = max(size, file.tell() + len(chunk))
                if size > LARGEST_DOWNLOAD:
                    part.unlink()
                    raise _too_large(url)
                file.write(chunk)
                bar.update(len(chunk))
    if expected > have and part.stat().st_size != expected:
        raise requests.exceptions.ConnectionError("the connection ended early")
    if "gzip" in response.headers.get("Content-Encoding", "").lower():
        _unwrap(part, url)
    shutil.move(part, target)
    version.unlink(missing_ok=True)


def _too_large(url: str) -> UserError:
    return UserError(f"{url} is larger than {LARGEST_DOWNLOAD >> 30} GiB, as no file of the 2014 reviews is")


def _unwrap(part: Path, url: str) -> None:
    """Undo the gzip that a server has put around a gzip file; many servers only name it and send the file as it is.

    What is damaged stays as it is, for `check_gzip` to find.
    """
    inner = part.with_suffix(".inner")
    try:
        with gzip.open(part) as file, inner.open("wb") as written:
            if file.peek(2)[:2] != GZIP:
                return
            while chunk := file.read(CHUNK):
                if written.tell() + len(chunk) > LARGEST_DOWNLOAD:
                    part.unlink()
                    raise _too_large(url)
                written.write(chunk)
        inner.replace(part)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return
    finally:
        inner.unlink(missing_ok=True)


def _is_plain(url: str) -> bool:
    return not url.lower().startswith("https:")


def check_gzip(path: Path) -> None:
    """Read a gzip file to its end, so that length and CRC are checked; raise UserError where it is damaged or too large."""
    limit = max(SMALL, LARGEST_EXPANSION * path.stat().st_size)
    if not path.stat().st_size:
        raise UserError(f"{path.name} is truncated or damaged (it is empty); fetch it again, or correct the mirror")
    with unpacked(path) as file, tqdm(unit="B", unit_scale=True, desc=f"checking {path.name}", delay=2) as bar:
        while chunk := file.read(CHUNK):
            bar.update(len(chunk))
            if file.tell() > limit:
                raise UserError(
                    f"{path.name} expands to more than {LARGEST_EXPANSION} times its size, as no file of reviews does; "
                    "fetch it from somewhere else"
                )


@contextmanager
def unpacked(path: Path) -> Iterator[gzip.GzipFile]:
    """Open a gzip file to read what is in it; raise UserError where it turns out to be damaged."""
    try:
        with gzip.open(path) as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path.name} is truncated or damaged ({error}); fetch it again, or correct the mirror") from None


def lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines of a gzip file; raise UserError where it is damaged or a line is longer than LONGEST_LINE."""
    number = 0
    with unpacked(path) as file:
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"{path.name}: line {number} is longer than {LONGEST_LINE >> 20} MiB, as no line of the 2014 files is; "
                    "fetch it from somewhere else"
                )
            yield line


def read_reviews(path: Path) -> pl.DataFrame:
    """Reviews, one JSON object a line, as user_id, item_id, timestamp. Read in parts, so that texts are never all in memory."""
    schema = {"reviewerID": pl.String, "asin": pl.String, "unixReviewTime": pl.Int64}
    tables = []
    for lines in _parts(path):
        try:
            tables.append(pl.read_ndjson(lines, schema=schema))
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{path.name}: not one JSON object a line ({first_line(error)})") from None
    table = pl.concat(tables) if tables else pl.DataFrame(schema=schema)
    table = table.rename({"reviewerID": "user_id", "asin": "item_id", "unixReviewTime": "timestamp"})
    missing = table.null_count().row(0)
    if any(missing):
        raise UserError(
            f"{path.name}: {max(missing)} reviews lack one of {', '.join(schema)}; the file is not a 2014 review file"
        )
    return table


def _parts(path: Path) -> Iterator[bytes]:
    """Yield whole lines, about PARSED_TOGETHER bytes of them at a time."""
    part: list[bytes] = []
    size = 0
    for line in lines_of(path):
        part.append(line)
        size += len(line)
        if size >= PARSED_TOGETHER:
            yield b"".join(part)
            part, size = [], 0
    if part:
        yield b"".join(part)


def read_items(path: Path, needed: set[str]) -> tuple[pl.DataFrame, int]:
    """FIELDS of the needed items, and the number of their lines that are no Python literal.

    The official files list a whole category, one Python literal a line: only needed lines are parsed, by `literal_eval`, which
    runs nothing. A line without an ASIN counts as malformed. Raises UserError above a share of MALFORMED_SHARE.
    """
    wanted = {asin.encode() for asin in needed}
    found_fields: dict[str, list[str | None]] = {}
    malformed = parsed = 0
    for line in tqdm(lines_of(path), unit=" lines", unit_scale=True, desc=f"reading {path.name}", delay=2):
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
