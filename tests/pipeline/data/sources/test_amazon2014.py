"""The Amazon 2014 source: whole files or none, from a folder or over a bad network; metadata that is parsed, never run."""

import ast
import gzip
import hashlib
import http.server
import json
import random
import re
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import polars as pl
import pytest
import yaml
from pydantic import ValidationError

from common.errors import UserError
from pipeline.data.interactions import build_sequences
from pipeline.data.sources import Raw, amazon2014
from pipeline.data.sources.amazon2014 import Amazon2014
from pipeline.params import Preprocess

SOURCE = Amazon2014(kind="amazon2014", name="Mini")
REVIEWS, METADATA = "reviews_Mini_5.json.gz", "meta_Mini.json.gz"


def compressed(lines: list[str], level: int = 9) -> bytes:
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), compresslevel=level, mtime=0)


def review(user: str, asin: str, time: int = 1_400_000_000) -> str:
    return json.dumps({"reviewerID": user, "asin": asin, "unixReviewTime": time, "overall": 5.0, "reviewText": "é"})


FILES = {
    REVIEWS: compressed([review(f"u{i}", f"A{i % 7}", 1_400_000_000 + 86_400 * i) for i in range(3000)], level=0),
    METADATA: compressed([repr({"asin": f"A{i}", "title": f"Item {i}"}) for i in range(7)]),
}


# ---------------------------------------------------------------------------------------------------------------- from a folder


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `fetch` writes; unfinished downloads go to a scratch of the test's own, and retries do not wait."""
    monkeypatch.setenv("SPECTRAN_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(amazon2014, "PAUSE", 0.0)
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_is_a_mirror(mirror: Path, target: Path) -> None:
    amazon2014.fetch(SOURCE, str(mirror), target)
    assert contents(target) == FILES


def test_a_relative_mirror_is_relative_to_the_users_checkout_in_a_queued_experiment_too(
    mirror: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = mirror.parent / "checkout/.dvc/tmp/exps/tmpx"
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    amazon2014.fetch(SOURCE, "../mirror", target)
    assert contents(target) == FILES


def test_a_missing_file_of_the_mirror_is_named(mirror: Path, target: Path) -> None:
    (mirror / METADATA).unlink()
    with pytest.raises(UserError, match=f"download.mirror: .*{METADATA} not found"):
        amazon2014.fetch(SOURCE, str(mirror), target)


def test_a_mirror_in_the_home_of_nobody_is_one_line(target: Path) -> None:
    with pytest.raises(UserError, match=r"^download\.mirror: ~no_such_user/x: there is no home of that user; write the folder's"):
        amazon2014.fetch(SOURCE, "~no_such_user/x", target)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:40] + bytes([data[40] ^ 255]) + data[41:],
        lambda data: b"<html>not found</html>",
        lambda data: b"",
    ],
    ids=["half", "last byte missing", "CRC", "length", "content", "a web page", "empty"],
)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_one_line_that_names_it(
    mirror: Path, target: Path, file: str, damage: Callable[[bytes], bytes]
) -> None:
    (mirror / file).write_bytes(damage(FILES[file]))
    with pytest.raises(UserError, match=f"{file} is truncated or damaged") as caught:
        amazon2014.fetch(SOURCE, str(mirror), target)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ over a bad network


@dataclass
class Site:
    """A web server that misbehaves to order, and remembers what it was asked and what it sent."""

    content: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    drops: list[int] = field(default_factory=list)  # the next responses of the reviews end after this many bytes
    ranges: bool = True
    heeds_if_range: bool = True
    etag: str | None = '"v1"'
    encodes: bool = False
    names_encoding: bool = False  # whether responses say Content-Encoding: gzip, whatever was asked
    sent: int = 0
    redirect: str = ""  # where the first request is sent
    length: bool = True  # whether responses say how long they are
    requests: list[dict[str, str]] = field(default_factory=list)
    on_drop: Callable[["Site"], None] = lambda site: None
    url: str = ""

    def respond(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition("/")[2]
        headers = {key.lower(): value for key, value in handler.headers.items()}
        self.requests.append({"file": name, **headers})
        if self.redirect and "elsewhere" not in handler.path:
            handler.send_response(302)
            handler.send_header("Location", self.redirect + (name if self.redirect.endswith("/") else ""))
            handler.end_headers()
            return
        if name not in self.content:
            handler.send_error(404)
            return
        data = self.content[name]
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        fresh = headers.get("if-range") in (None, self.etag)
        if asked and self.ranges and (fresh or not self.heeds_if_range):
            start = int(asked[1])
            if start >= len(data):
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        body = data[start:]
        if self.names_encoding or (self.encodes and "gzip" in headers.get("accept-encoding", "")):
            handler.send_header("Content-Encoding", "gzip")
        if self.etag:
            handler.send_header("ETag", self.etag)
        if self.length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        dropping = name == REVIEWS and bool(self.drops)
        if dropping:
            body = body[: self.drops.pop(0)]
            self.on_drop(self)
        self.sent += len(body)  # before the client can know that it has everything
        handler.wfile.write(body)
        if dropping:
            handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.respond(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/files"
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(site: Site, target: Path) -> None:
    amazon2014.fetch(SOURCE, site.url, target)


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in (target.parent / "scratch").rglob("*") if path.is_file())


def test_a_download_brings_both_files_and_leaves_nothing_else(site: Site, target: Path) -> None:
    fetch(site, target)
    assert contents(target) == FILES
    assert leftovers(target) == []
    assert site.sent == sum(map(len, FILES.values()))


def test_a_slash_at_the_end_of_the_mirrors_address_changes_nothing(site: Site, target: Path) -> None:
    site.url += "/"
    fetch(site, target)
    assert contents(target) == FILES


def test_a_dropped_connection_is_resumed_from_the_last_whole_chunk(site: Site, target: Path) -> None:
    chunk = amazon2014.DOWNLOAD_CHUNK
    site.drops = [chunk + 5_000, 2 * chunk]
    fetch(site, target)
    assert contents(target) == FILES
    asked = [request.get("range") for request in site.requests if request["file"] == REVIEWS]
    assert asked == [None, f"bytes={chunk}-", f"bytes={3 * chunk}-"]
    assert site.sent == sum(map(len, FILES.values())) + 5_000


def test_what_one_run_left_is_continued_by_the_next(site: Site, target: Path) -> None:
    chunk = amazon2014.DOWNLOAD_CHUNK
    site.drops = [2 * chunk] + [100] * (amazon2014.TRIES - 1)
    with pytest.raises(UserError, match=r"cannot download http.*reviews_Mini_5.json.gz after 5 tries.*continued next time"):
        fetch(site, target)
    assert contents(target) == {}
    fetch(site, target)
    assert contents(target) == FILES
    assert [request.get("range") for request in site.requests][5] == f"bytes={2 * chunk}-"


def test_a_server_without_ranges_sends_the_file_again(site: Site, target: Path) -> None:
    site.ranges = False
    site.drops = [2 * amazon2014.DOWNLOAD_CHUNK]
    fetch(site, target)
    assert contents(target) == FILES
    assert site.sent == sum(map(len, FILES.values())) + 2 * amazon2014.DOWNLOAD_CHUNK


def replace_reviews(site: Site) -> None:
    site.content[REVIEWS] = compressed([review(f"new{i}", f"A{i % 7}") for i in range(3000)], level=0)
    site.etag = '"v2"' if site.etag else None


@pytest.mark.parametrize(
    "server",
    [{}, {"heeds_if_range": False}, {"etag": None}, {"etag": None, "heeds_if_range": False}],
    ids=["If-Range", "ranges without If-Range", "no version", "no version, ranges without If-Range"],
)
def test_a_file_that_changed_meanwhile_is_never_spliced(site: Site, target: Path, server: dict[str, Any]) -> None:
    for name, value in server.items():
        setattr(site, name, value)
    site.drops = [2 * amazon2014.DOWNLOAD_CHUNK]
    site.on_drop = replace_reviews
    fetch(site, target)
    assert site.content[REVIEWS] != FILES[REVIEWS]
    assert contents(target) == site.content


def test_a_partial_file_that_is_longer_than_the_servers_is_thrown_away(site: Site, target: Path) -> None:
    site.drops = [100_000] * amazon2014.TRIES
    whole = site.content[REVIEWS]
    site.content[REVIEWS] = whole * 10
    with pytest.raises(UserError):
        fetch(site, target)
    site.content[REVIEWS] = whole
    fetch(site, target)
    assert contents(target) == FILES


def test_a_server_that_compresses_what_it_sends_does_not_unpack_the_file(site: Site, target: Path) -> None:
    site.encodes = True
    fetch(site, target)
    assert contents(target) == FILES


@pytest.mark.parametrize("packs", [False, True], ids=["named only", "packed once more"])
@pytest.mark.parametrize("length", [True, False], ids=["length", "no length"])
def test_a_server_that_names_an_encoding_though_none_was_asked_for(site: Site, target: Path, packs: bool, length: bool) -> None:
    """Some servers call every .gz file an encoded one, and proxies pack what they pass on. Dropped connections are resumed."""
    site.names_encoding, site.length = True, length
    if packs:
        site.content = {name: gzip.compress(content, compresslevel=0, mtime=0) for name, content in FILES.items()}
    site.drops = [2 * amazon2014.DOWNLOAD_CHUNK] if length else []
    fetch(site, target)
    assert contents(target) == FILES
    assert leftovers(target) == []
    if length:
        asked = [request.get("range") for request in site.requests if request["file"] == REVIEWS]
        assert asked == [None, f"bytes={2 * amazon2014.DOWNLOAD_CHUNK}-"]


def test_a_damaged_file_that_the_server_packed_once_more_is_refused(site: Site, target: Path) -> None:
    site.names_encoding = True
    site.content = {name: gzip.compress(content, compresslevel=0, mtime=0)[:-3] for name, content in FILES.items()}
    with pytest.raises(UserError, match=f"{REVIEWS} is truncated or damaged"):
        fetch(site, target)
    assert leftovers(target) == []


def test_a_damaged_file_of_the_server_is_refused_and_fetched_anew_next_time(site: Site, target: Path) -> None:
    site.content[REVIEWS] = FILES[REVIEWS][:-5]
    with pytest.raises(UserError, match="truncated or damaged"):
        fetch(site, target)
    assert leftovers(target) == []
    (target / REVIEWS).unlink()
    site.content[REVIEWS] = FILES[REVIEWS]
    fetch(site, target)
    assert contents(target) == FILES


def test_a_file_that_is_not_there_is_one_line(site: Site, target: Path) -> None:
    del site.content[REVIEWS]
    with pytest.raises(
        UserError, match=r"http://127.0.0.1:\d+/files/reviews_Mini_5.json.gz does not exist; check the source's name"
    ) as caught:
        fetch(site, target)
    assert "\n" not in str(caught.value)
    assert contents(target) == {}
    assert leftovers(target) == []


def test_an_unreachable_server_is_one_line(target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        UserError, match=rf"cannot download http://127.0.0.1:{port}/.*check the network, or set download.mirror"
    ) as caught:
        amazon2014.fetch(SOURCE, f"http://127.0.0.1:{port}", target)
    assert "\n" not in str(caught.value)
    assert contents(target) == {}


def test_without_a_mirror_the_official_site_is_asked(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(amazon2014, "_download", lambda url, path: asked.append(url) or path.write_bytes(FILES[path.name]))
    amazon2014.fetch(Amazon2014(kind="amazon2014", name="Mini"), None, target)
    site = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
    assert asked == [site + REVIEWS, site + METADATA]


# --------------------------------------------------------------------------------------------------- what is refused, and at once


@pytest.mark.parametrize("mirror", ["file:///srv/files", "ftp://example.org/files", "gopher://example.org", "data://x"])
def test_only_http_is_asked_and_nothing_is_tried_five_times(mirror: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amazon2014, "PAUSE", 1000.0)
    scheme = mirror.partition(":")[0]
    with pytest.raises(UserError, match=rf"download.mirror: {scheme}:// is not supported; use http") as caught:
        amazon2014.fetch(SOURCE, mirror, target)
    assert ("leave out `file://`" in str(caught.value)) == (scheme == "file")


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://example.org/reviews", "data:text/plain,x", "http://["])
def test_a_redirect_to_anything_but_http_is_refused_at_once(
    site: Site, target: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amazon2014, "PAUSE", 1000.0)
    site.redirect = place
    with pytest.raises(UserError, match=r"cannot download http://127.*must be http\(s\) addresses") as caught:
        fetch(site, target)
    assert "\n" not in str(caught.value)
    assert len(site.requests) == 1
    assert contents(target) == {}


def test_a_redirect_within_http_is_followed(site: Site, target: Path) -> None:
    site.redirect = f"{site.url}/elsewhere/"
    fetch(site, target)
    assert contents(target) == FILES


@pytest.mark.parametrize(
    ("hops", "refused"),
    [
        (["https://a/x", "http://b/x"], "http://b/x"),
        (["https://a/x", "http://b/x", "https://c/x"], "http://b/x"),
        (["http://a/x", "https://b/x", "http://c/x"], "http://c/x"),
    ],
)
def test_no_redirect_leads_from_https_to_http(
    target: Path, monkeypatch: pytest.MonkeyPatch, hops: list[str], refused: str
) -> None:
    """Also where the last address is encrypted again: what came in between could have been changed on the way."""
    *before, last = (SimpleNamespace(url=url) for url in hops)
    response = MagicMock(status_code=200, url=last.url, history=before)
    response.__enter__.return_value = response
    monkeypatch.setattr("requests.get", lambda *_, **__: response)
    with pytest.raises(UserError, match=rf"^{hops[0]}.* redirects to {refused}, which is not encrypted"):
        amazon2014._resume(hops[0], target)


def test_a_password_of_the_address_stands_nowhere(
    site: Site, target: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    site.url = site.url.replace("://", "://ada:hunter2@")
    del site.content[METADATA]
    site.drops = [amazon2014.DOWNLOAD_CHUNK] * amazon2014.TRIES
    seen = []
    for _ in range(2):  # the connection drops; then a file is missing
        with pytest.raises(UserError) as caught:
            fetch(site, target)
        seen.append(str(caught.value))
        seen += [str(path) for path in (target.parent / "scratch").rglob("*")]
    printed = capfd.readouterr()
    everything = "\n".join([*seen, printed.out, printed.err])
    assert "ada:***@127.0.0.1" in seen[0]
    assert "does not exist" in everything
    assert "hunter2" not in everything


def test_a_bomb_is_refused_with_little_memory(mirror: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 MiB that expands to 1 GiB; the real limits at a scale that takes a moment."""
    monkeypatch.setattr(amazon2014, "SMALL", 1 << 20)
    bomb = gzip.compress(b"x" * (1 << 26))
    (mirror / REVIEWS).write_bytes(bomb * 4)
    tracemalloc.start()
    with pytest.raises(UserError, match=f"{REVIEWS} expands to more than 100 times its size") as caught:
        amazon2014.fetch(SOURCE, str(mirror), target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 1 << 24


@pytest.mark.slow
def test_26_mib_that_expand_to_6_gib_are_refused_with_little_memory(mirror: Path, target: Path) -> None:
    part = gzip.compress(b"x" * (1 << 28))
    (mirror / REVIEWS).write_bytes(
        part * 24 + b"".join(gzip.compress(bytes(random.Random(i).randbytes(1 << 20))) for i in range(20))
    )
    size = (mirror / REVIEWS).stat().st_size
    assert 25 << 20 < size < 28 << 20
    tracemalloc.start()
    with pytest.raises(UserError, match=f"{REVIEWS} expands to more than 100 times its size"):
        amazon2014.fetch(SOURCE, str(mirror), target)
    assert tracemalloc.get_traced_memory()[1] < 1 << 25
    tracemalloc.stop()


@pytest.mark.parametrize("file", FILES)
def test_an_endless_line_is_refused_with_little_memory(mirror: Path, file: str) -> None:
    (mirror / file).write_bytes(gzip.compress(b"{'asin': 'A1', 'title': '" + b"x" * (1 << 26)))
    tracemalloc.start()
    with pytest.raises(UserError, match=rf"{file}: line 1 is longer than 1 MiB") as caught:
        amazon2014.read(SOURCE, mirror)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 1 << 23


def test_reviews_read_in_parts_are_those_read_at_once(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = amazon2014.read_reviews(mirror / REVIEWS)
    monkeypatch.setattr(amazon2014, "PARSED_TOGETHER", 1000)
    assert amazon2014.read_reviews(mirror / REVIEWS).equals(whole)
    assert whole.height == 3000


def test_a_file_without_end_is_refused(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amazon2014, "LARGEST_DOWNLOAD", 1 << 17)
    site.length = False
    with pytest.raises(UserError, match=r"reviews_Mini_5.json.gz is larger than 0 GiB"):
        fetch(site, target)
    assert [name for name in leftovers(target) if name.endswith(".part")] == []


# ------------------------------------------------------------------------------------------------------- which files they are


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


CHECKSUMS = [digest(FILES[REVIEWS]), digest(FILES[METADATA])]


def test_the_files_whose_checksums_params_yaml_has_are_taken(mirror: Path, target: Path) -> None:
    amazon2014.fetch(SOURCE.model_copy(update={"sha256": tuple(CHECKSUMS)}), str(mirror), target)
    assert contents(target) == FILES


@pytest.mark.parametrize("number", [0, 1])
def test_other_files_are_refused_in_one_line_that_has_both_checksums(mirror: Path, target: Path, number: int) -> None:
    pinned = [*CHECKSUMS]
    pinned[number] = "0" * 64
    with pytest.raises(UserError) as caught:
        amazon2014.fetch(SOURCE.model_copy(update={"sha256": tuple(pinned)}), str(mirror), target)
    says = f"{(REVIEWS, METADATA)[number]} has SHA-256 {CHECKSUMS[number]}, not {'0' * 64} as `sha256` of its source"
    assert says in str(caught.value)


def test_a_mirrors_unknown_file_of_a_known_category_is_taken_once_its_checksum_is_written_down(
    mirror: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says what to write, and writing that is enough."""
    monkeypatch.setitem(amazon2014.KNOWN, REVIEWS, "1" * 64)
    with pytest.raises(UserError, match=r"download.mirror: reviews_Mini_5.json.gz has SHA-256 .* not 1111") as caught:
        amazon2014.fetch(SOURCE, str(mirror), target)
    assert "\n" not in str(caught.value)
    written = re.search(r"`(sha256: .*)`$", str(caught.value))
    assert written
    trusting = Amazon2014(kind="amazon2014", name="Mini", **yaml.safe_load(written[1]))
    amazon2014.fetch(trusting, str(mirror), target)
    assert contents(target) == FILES


def test_the_official_sites_unknown_file_is_taken_with_a_note(
    site: Site, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(amazon2014.KNOWN, REVIEWS, "1" * 64)
    monkeypatch.setattr(amazon2014, "SITE", site.url)
    amazon2014.fetch(SOURCE, None, target)
    assert contents(target) == FILES
    [note] = capsys.readouterr().err.splitlines()
    assert note.startswith("note: not verified: reviews_Mini_5.json.gz has SHA-256")


def test_files_of_a_category_that_nobody_knows_are_taken_with_a_note(
    mirror: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The note says how to refuse others from now on."""
    amazon2014.fetch(SOURCE, str(mirror), target)
    [note] = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: not verified: no checksums of {REVIEWS} and {METADATA} are known; to refuse others, write ")
    written = re.search(r"`(sha256: .*)`$", note)
    assert written
    assert yaml.safe_load(written[1]) == {"sha256": [*CHECKSUMS]}


def test_the_known_checksums_are_those_of_the_data_at_hand(amazon2014: Path) -> None:
    from pipeline.data.sources.amazon2014 import KNOWN

    assert {file.name: digest(file.read_bytes()) for file in amazon2014.glob("*.gz")} == KNOWN


@pytest.mark.parametrize("name", ["../x", "a/b", "", "Toys Games", "x.y", "x\n"])
def test_a_category_is_a_name(name: str) -> None:
    with pytest.raises(ValidationError):
        Amazon2014(kind="amazon2014", name=name)


# -------------------------------------------------------------------------------------------------------------------- metadata


def metadata(tmp_path: Path, lines: list[str]) -> Path:
    path = tmp_path / METADATA
    path.write_bytes(compressed(lines, level=1))
    return path


def good(count: int) -> list[str]:
    return [repr({"asin": f"A{i}", "title": f"Item {i}", "price": 1.5}) for i in range(count)]


def test_titles_are_read_as_published(tmp_path: Path) -> None:
    lines = [
        repr({"asin": "A0", "title": "Salt &amp; Pepper “Mill”"}),
        repr({"asin": "A1", "title": 'it\'s a "quoted" one\\'}),
        repr({"asin": "A2"}),
        repr({"asin": "A3", "title": 42}),
        repr({"asin": "A4", "title": None}),
        repr({"asin": "A5", "title": ["a", "list"]}),
        "{'title': 'asin last', 'asin': 'A6'}",
        '{"asin": "A7", "title": "double quotes"}',
        "",
    ]
    items, malformed = amazon2014.read_items(metadata(tmp_path, lines), {f"A{i}" for i in range(8)})
    assert dict(items.select("item_id", "title").rows()) == {
        "A0": "Salt &amp; Pepper “Mill”",
        "A1": 'it\'s a "quoted" one\\',
        "A2": None,
        "A3": None,
        "A4": None,
        "A5": None,
        "A6": "asin last",
        "A7": "double quotes",
    }
    assert malformed == 0
    assert items.schema == dict.fromkeys(("item_id", "title", "brand", "categories", "description"), pl.String)


def test_fields_for_the_template_are_read_too(tmp_path: Path) -> None:
    lines = [
        repr(
            {
                "asin": "A0",
                "title": "x",
                "brand": "Alder",
                "description": "d",
                "categories": [["Toys", "Kites"], ["Toys", "Gifts"]],
            }
        ),
        repr({"asin": "A1", "title": "x", "brand": 7, "categories": "Toys"}),
        repr({"asin": "A2", "title": "x", "categories": [[], "Toys", [3, "Kites"]]}),
    ]
    items, _ = amazon2014.read_items(metadata(tmp_path, lines), {"A0", "A1", "A2"})
    assert items.select("brand", "categories", "description").rows() == [
        ("Alder", "Toys, Kites, Gifts", "d"),
        (None, None, None),
        (None, "Kites", None),
    ]


MALFORMED = [
    "{'asin': 'A0', 'title': 'cut of",
    "{'asin': 'A0', 'title': \"x\" + str(1)}",
    "['asin', 'A0']",
    "'asin': 'A0'",
    "{'asin': 'A0', 'title': nan}",
    "no asin at all",
    "{'asin': 'A0', 'nested': " + "[" * 5000 + "]" * 5000 + "}",
    "{'asin': 'A0', 'title': '\x00'}",
]


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_line_is_skipped_and_counted(tmp_path: Path, line: str) -> None:
    lines = [*good(200), line]
    items, malformed = amazon2014.read_items(metadata(tmp_path, lines), {f"A{i}" for i in range(200)})
    assert malformed == 1
    assert items.height == 200


def test_more_than_one_line_in_a_hundred_is_refused(tmp_path: Path) -> None:
    needed = {f"A{i}" for i in range(198)}
    _, malformed = amazon2014.read_items(metadata(tmp_path, good(198) + MALFORMED[:2]), needed)
    assert malformed == 2
    with pytest.raises(UserError, match="3 of 201 needed lines are not Python literals") as caught:
        amazon2014.read_items(metadata(tmp_path, good(198) + MALFORMED[:3]), needed)
    assert "\n" not in str(caught.value)


def test_malformed_lines_of_items_that_nobody_needs_do_not_count(tmp_path: Path) -> None:
    lines = [*good(10), *["{'asin': 'ZZ', 'title': cut" for _ in range(100)]]
    _, malformed = amazon2014.read_items(metadata(tmp_path, lines), {f"A{i}" for i in range(10)})
    assert malformed == 0


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('touch {witness}')",
        "{{'asin': 'A0', 'title': __import__('pathlib').Path('{witness}').touch()}}",
        "{{'asin': 'A0', 'title': [open('{witness}', 'w') for _ in (1,)]}}",
        "{{'asin': 'A0', 'title': f'{{open(\"{witness}\", \"w\")}}'}}",
    ],
)
def test_code_in_the_metadata_is_never_run(tmp_path: Path, code: str) -> None:
    witness = tmp_path / "witness"
    _, malformed = amazon2014.read_items(
        metadata(tmp_path, [*good(200), code.format(witness=witness)]), {"A0", "A1"} | {f"A{i}" for i in range(200)}
    )
    assert malformed == 1
    assert not witness.exists()


def test_of_a_whole_category_only_the_needed_lines_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0
    parse = ast.literal_eval

    def counting(text: str) -> Any:
        nonlocal parsed
        parsed += 1
        return parse(text)

    monkeypatch.setattr(ast, "literal_eval", counting)
    path = metadata(tmp_path, good(100_000))
    items, _ = amazon2014.read_items(path, {"A5", "A77777", "not there"})
    assert sorted(items["title"]) == ["Item 5", "Item 77777"]
    assert parsed == 2


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["not json"], "not one JSON object a line"),
        ([json.dumps({"reviewerID": "u", "asin": "A"})], "lack one of reviewerID, asin, unixReviewTime"),
        ([json.dumps({"reviewerID": "u", "asin": "A", "unixReviewTime": "yesterday"})], "reviews_Mini_5.json.gz: "),
    ],
)
def test_reviews_that_are_not_reviews_are_one_line(tmp_path: Path, lines: list[str], says: str) -> None:
    path = tmp_path / REVIEWS
    path.write_bytes(compressed([review("u", "A"), *lines]))
    with pytest.raises(UserError, match=says) as caught:
        amazon2014.read_reviews(path)
    assert "\n" not in str(caught.value)


def test_reading_joins_reviews_and_titles_and_counts_what_was_skipped(mirror: Path) -> None:
    lines = [*gzip.decompress(FILES[METADATA]).decode().splitlines(), *good(400), MALFORMED[0].replace("A0", "A6")]
    (mirror / METADATA).write_bytes(compressed(lines))
    (mirror / REVIEWS).write_bytes(compressed([review(f"u{i}", f"A{i}", i) for i in range(400)]))
    raw = amazon2014.read(SOURCE, mirror)
    assert raw.interactions.columns == ["user_id", "item_id", "timestamp"]
    assert raw.interactions.row(3) == ("u3", "A3", 3)
    assert raw.counts == {"malformed_metadata_lines": 1}


def test_entities_are_unescaped_in_the_text_only(tmp_path: Path) -> None:
    interactions = pl.DataFrame(
        [(f"u{u}", f"A{i}", u) for u in range(3) for i in range(3)], schema=["user_id", "item_id", "timestamp"], orient="row"
    )
    items = pl.DataFrame({"item_id": ["A0", "A1", "A2"], "title": ["Salt &amp; Pepper", "5&quot; x 7&#39;", "plain"]})
    made = build_sequences(Raw(interactions, items), Preprocess(core=3)).items
    assert made["title"].to_list() == ["Salt &amp; Pepper", "5&quot; x 7&#39;", "plain"]
    assert made["text"].to_list() == ["Salt & Pepper", "5\" x 7'", "plain"]


# -------------------------------------------------------------------------------------------------------- the paper's datasets

TABLE1 = {
    "Toys_and_Games": (19_124, 11_757, 141_630, (19_412, 11_924, 167_597), (19_124, 11_758, 165_247)),
    "Beauty": (22_332, 12_086, 168_446, (22_363, 12_101, 198_502), (22_332, 12_086, 198_215)),
    "Clothing_Shoes_and_Jewelry": (39_230, 22_948, 266_481, (39_387, 23_033, 278_677), (39_230, 22_948, 277_534)),
    "Office_Products": (4_895, 2_414, 41_462, (4_905, 2_420, 53_258), (4_895, 2_414, 53_149)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name.startswith("Office") else pytest.mark.slow) for name in TABLE1]
)
def test_table_1_of_the_paper_is_met_to_the_last_digit(name: str, amazon2014: Path, target: Path) -> None:
    """Whatever the order of ties: the cap comes first."""
    from pipeline.data.sources import amazon2014 as source

    users, items, interactions, published, titled = TABLE1[name]
    category = Amazon2014(kind="amazon2014", name=name)
    source.fetch(category, str(amazon2014), target)
    raw = source.read(category, target)
    shuffled, made = (build_sequences(raw, Preprocess(ties=ties)) for ties in ("shuffled", "item"))
    assert shuffled.statistics == made.statistics
    assert shuffled.items.equals(made.items)
    assert not shuffled.users.equals(made.users)
    sets = [users.select("user_id", pl.col("items").list.sort(), "timestamps") for users in (shuffled.users, made.users)]
    assert sets[0].equals(sets[1]), "the same interactions, in another order"
    statistics = made.statistics
    assert (statistics["users"], statistics["items"], statistics["interactions"]) == (users, items, interactions)
    steps = {step: tuple(size.values()) for step, size in statistics["steps"].items()}
    assert steps["raw"] == published
    assert steps["5-core"] == titled
    assert (made.users.height, made.items.height, made.users["items"].list.len().sum()) == (users, items, interactions)
    assert (statistics["duplicate_interactions"], statistics["malformed_metadata_lines"]) == (0, 0)


def test_half_a_surrogate_pair_in_a_title_is_replaced(tmp_path: Path) -> None:
    """A pair is one character; half of one has no UTF-8."""
    lines = [repr({"asin": "A", "title": "x\ud83d\ude00y", "brand": "\ud800", "categories": [["\udc00 z"]]})]
    (tmp_path / "meta.json.gz").write_bytes(compressed(lines))
    items, malformed = amazon2014.read_items(tmp_path / "meta.json.gz", {"A"})
    assert malformed == 0
    assert items.row(0)[:4] == ("A", "x\U0001f600y", "\ufffd", "\ufffd z")
