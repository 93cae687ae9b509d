"""Recommendations over HTTP from a package: `python serve.py`, or `python serve.py FOLDER --port 8000`.

Every package carries this file as `serve.py`. It needs onnxruntime, numpy, fastapi and uvicorn, and nothing of the project that
made the package. `Package(folder).recommend(history)` gives the same answers in Python, with onnxruntime and numpy alone.
"""

import argparse
import asyncio
import hashlib
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

try:
    import numpy as np
except ImportError:
    if __name__ != "__main__":
        raise
    sys.exit("serve: the Python package numpy is not installed; run `pip install -r requirements.txt`")

FORMAT = 1  # of the folder; a package of another format is refused
K, HISTORY, LISTED = 100, 1000, 10_000  # at most: items asked for, of a history, of allow or deny
BODY = 1 << 20  # bytes of a request, at most, unless the catalogue has ids of which so many need more
DRAINED = 16  # limits of a body: so much of one that is too long is read, so that the client hears why
STALLED = 30  # seconds without a byte of a body that has begun, after which it is refused
GRACE = 5  # seconds that open requests have when the server is told to stop
EPSILON = 1e-8  # length of the shortest row that is normalised, as in training


class PackageError(Exception):
    """A folder that is no intact package, or a request with a mistake. The text is one line."""


class Package:
    """The model and its catalogue. `recommend` may be called by several threads at a time.

    Raises PackageError for a folder that is not there, damaged, of another format, or replaced while it is read.
    """

    def __init__(self, folder: Path | str, threads: int = 1, check: bool = True) -> None:
        """threads: that one request's encoding may use. check: whether files are compared with their checksums first."""
        import onnxruntime

        self.folder = Path(folder)
        sidecar = _bytes(self.folder / "sidecar.json")
        if check:
            verify(self.folder)
        self.config = read_json(self.folder / "config.json")
        if self.config.get("format") != FORMAT:
            raise PackageError(f"{self.folder} is a package of format {self.config.get('format')!r}, this server reads {FORMAT}")
        items = read_json(self.folder / "items.json")
        self.item_ids: list[str] = items["ids"]
        self.titles: list[str] = items["titles"]
        self.index = {item: i for i, item in enumerate(self.item_ids)}
        self.interactions = np.load(self.folder / "popularity.npy", allow_pickle=False)  # (N,) int64
        self.by_popularity = np.argsort(-self.interactions, kind="stable")
        self.vectors = np.load(self.folder / "vectors.npy", allow_pickle=False)  # the item table T, (N, d) float32
        exact = self._exact(np.arange(len(self.vectors)))
        self.rows = exact.astype(np.float32)
        # Of a float32 product of length d, and of the rounded row, with some room.
        self.error = (self.rows.shape[1] + 8) * 2.0**-24 * float(np.linalg.norm(self.rows, axis=1).max())
        self.max_history: int = self.config["max_history"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        encoder = self.folder / "encoder.onnx"
        try:
            self.session = onnxruntime.InferenceSession(encoder, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the classes of onnxruntime have no base of their own
            first = next(iter(str(error).splitlines()), type(error).__name__)
            reader = f"onnxruntime {onnxruntime.__version__}"
            raise PackageError(f"{encoder}: {reader} cannot read it: {first}; run `pip install -r requirements.txt`") from None
        if _bytes(self.folder / "sidecar.json") != sidecar:
            raise PackageError(f"{self.folder} was replaced while it was read; start again")

    def states(self, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """States that predict the item after each history, (B, d) float32. histories: row numbers, oldest first, none empty."""
        padded = np.full((len(histories), self.max_history), len(self.vectors), dtype=np.int64)
        for row, history in zip(padded, histories, strict=True):
            last = history[-self.max_history :]
            row[len(row) - len(last) :] = last
        found: np.ndarray = self.session.run(["states"], {"history": padded, "table": self.vectors})[0]
        return found

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        exclude_history: bool = True,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] = (),
        skip_unknown: bool = False,
    ) -> dict[str, Any]:
        """Return {"source": "model" or "popularity", "items": [{"item_id", "title", "score"}, …]}, best first, at most k items.

        Scores are compared in float64; ties go to the item that comes first in items.json. Popularity answers where the history
        is empty. Raises PackageError for an unknown item, unless `skip_unknown` says to pass over those, for ids that are not
        text, and for k < 1.
        """
        if k < 1:
            raise PackageError(f"k is {k}; choose at least 1")
        had = self._indices(history, "history", skip_unknown)
        shown = np.full(len(self.item_ids), allow is None)
        if allow is not None:
            shown[self._indices(allow, "allow", skip_unknown)] = True
        shown[self._indices(deny, "deny", skip_unknown)] = False
        if exclude_history:
            shown[had] = False
        if had:
            source, chosen, scores = "model", *self._best(self.states([had])[0], shown, k)
        else:
            chosen = self.by_popularity[shown[self.by_popularity]][:k]
            source, scores = "popularity", self.interactions[chosen]
        items = [
            {"item_id": self.item_ids[i], "title": self.titles[i], "score": float(score)}
            for i, score in zip(chosen.tolist(), scores, strict=True)
        ]
        return {"source": source, "items": items}

    def _best(self, state: np.ndarray, shown: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the items that are shown, and their float64 scores. state: (d,); shown: (N,) bool."""
        # In one thread. `rows @ state` takes every core, and requests that are answered side by side then wait for each other.
        scores: np.ndarray = np.einsum("nd,d->n", self.rows, state)
        scores[~shown] = -np.inf
        k = min(k, int(shown.sum()))
        if not k:
            return np.empty(0, dtype=np.int64), np.empty(0)
        # What float32 cannot tell from the k-th best is compared again.
        least = np.partition(scores, -k)[-k] - 2 * self.error * np.linalg.norm(state)
        candidates = (scores >= least).nonzero()[0]
        exact = (self._exact(candidates) * state.astype(np.float64)).sum(1)
        order = np.lexsort((candidates, -exact))[:k]
        return candidates[order], exact[order]

    def _exact(self, items: np.ndarray) -> np.ndarray:
        rows = self.vectors[items].astype(np.float64)
        if self.config["similarity"] == "cosine":
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), EPSILON)
        return rows

    def _indices(self, items: Iterable[str], where: str, skip_unknown: bool) -> list[int]:
        if isinstance(items, str):
            raise PackageError(f"{where}: expected a list of item ids, found the text {items[:100]!r}")
        items = list(items)
        for item in items:
            if not isinstance(item, str):
                raise PackageError(f"{where}: expected item ids as text, found {item!r}")
        found = [self.index.get(item, -1) for item in items]
        if -1 in found and not skip_unknown:
            unknown = items[found.index(-1)]
            raise PackageError(
                f"{where}: unknown item {unknown[:100]!r}; skip_unknown passes over items that the catalogue lacks"
            )
        return [i for i in found if i >= 0]


def _bytes(path: Path) -> bytes:
    """The content of a file; nothing if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file of the package holds. Raises PackageError for anything else, and for a missing file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise PackageError(f"{path} is missing or damaged; get the package again")
    return content


def verify(folder: Path) -> None:
    """Raise PackageError unless every file of the package is the one that its sidecar lists."""
    sidecar = folder / "sidecar.json"
    files = read_json(sidecar).get("files") if sidecar.is_file() else None
    if not isinstance(files, dict) or "config.json" not in files:
        raise PackageError(f"{folder} is no package; `python -m stages.package` makes one")
    for name, checksum in files.items():
        path = folder / name
        if not path.is_file():
            raise PackageError(f"{path} is missing; get the package again")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                raise PackageError(f"{path} is damaged, its checksum is not that in sidecar.json; get the package again")


# ------------------------------------------------------------------------------------------------------------------- over HTTP


def create_app(package: Package) -> Any:
    """The ASGI application. Every mistake is answered by {"error": one line}."""
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import Response
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.exceptions import HTTPException

    longest = max(map(len, package.item_ids), default=0)
    bytes_each = max((len(json.dumps(item)) + 2 for item in package.item_ids), default=0)
    Item = Annotated[str, Field(max_length=max(256, longest))]

    class Asked(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        history: list[Item] = Field([], max_length=HISTORY, description="item ids, oldest first; none: the most popular items")
        k: int = Field(10, ge=1, le=K, description="items wanted")
        exclude_history: bool = Field(True, description="leave out the items of the history")
        allow: list[Item] | None = Field(None, max_length=LISTED, description="the only items that may be recommended")
        deny: list[Item] = Field([], max_length=LISTED, description="items that may not be recommended")
        skip_unknown: bool = Field(False, description="pass over items that the catalogue lacks, which are an error otherwise")

    class Recommended(BaseModel):
        item_id: str
        title: str
        score: float

    class Answer(BaseModel):
        source: str = Field(description="model, or popularity where the history is empty")
        items: list[Recommended] = Field(description="best first; fewer than k where no more are left")

    class Mistake(BaseModel):
        error: str

    class Health(BaseModel):
        status: str
        name: str
        items: int
        run: str = Field(description="fingerprint of the trained run")

    def answer(content: Any, status: int = 200) -> Response:
        # ASCII: what a client sent may not be encodable.
        return Response(json.dumps(content), status, media_type="application/json")

    mistakes: dict[int | str, dict[str, Any]] = {status: {"model": Mistake} for status in (400, 408, 413, 422)}
    app = FastAPI(title=f"Recommendations: {package.config['name']}", version=package.config["run"][:8])

    @app.post("/recommend", response_model=Answer, responses=mistakes)
    def recommend(asked: Asked) -> Response:
        """The k best items after a history."""
        options = {name: getattr(asked, name) for name in Asked.model_fields}
        try:
            return answer(package.recommend(**options))
        except PackageError as error:
            return answer({"error": str(error)}, 422)

    @app.get("/health", response_model=Health)
    async def health() -> Response:
        """Whether the server answers, and by which model."""
        config = package.config
        return answer({"status": "ok", "name": config["name"], "items": len(package.item_ids), "run": config["run"]})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part)[:100] for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            return answer({"error": f"the body is not JSON: {first['ctx']['error']}"}, 400)
        if first["type"] == "model_attributes_type":
            return answer({"error": "the body is not a JSON object, sent as Content-Type: application/json"}, 422)
        return answer({"error": f"{place or 'body'}: {first['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return answer({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return answer({"error": "the server failed on this request; its log says why"}, 500)

    app.add_middleware(BodyLimit, limit=max(BODY, (HISTORY + 2 * LISTED) * bytes_each))
    return app


Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class BodyLimit:
    """ASGI middleware: a body of more than `limit` bytes is answered with 413 and never parsed; one that stalls, with 408."""

    def __init__(self, app: Any, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        parts: list[bytes] = []
        length, more = 0, True
        while more and length <= DRAINED * self.limit:
            try:
                message = await asyncio.wait_for(receive(), STALLED)
            except TimeoutError:
                await self.refuse(send, 408, f"nothing of the body came in {STALLED} seconds")
                return
            if message["type"] == "http.disconnect":
                return
            part = message.get("body", b"")
            length, more = length + len(part), message.get("more_body", False)
            if length <= self.limit:
                parts.append(part)
        if length > self.limit:
            await self.refuse(send, 413, f"the body is longer than {self.limit} bytes")
            return
        whole: Message | None = {"type": "http.request", "body": b"".join(parts), "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            message, whole = whole, None
            return message or await receive()

        await self.app(scope, replay, send)

    async def refuse(self, send: Send, status: int, error: str) -> None:
        body = json.dumps({"error": error}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})


def port_number(text: str) -> int:
    """A port of the command line. Raises argparse's error for anything else than 0 to 65535."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; choose a number from 1 to 65535, or 0 for any free port")
    return int(text)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises PackageError where the address is empty, unknown, in use or not allowed."""
    if not host:
        raise PackageError("--host is empty, which would open the port to the network; name an address, such as 127.0.0.1")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (")[0]
        raise PackageError(f"cannot listen on host {host}, port {port}: {reason}; choose another --host or --port") from None


def serve(folder: Path, host: str, port: int) -> None:
    """Answer requests until interrupted. Raises PackageError for a folder that is no intact package, and as `listen`."""
    import uvicorn

    package = Package(folder)
    config = uvicorn.Config(create_app(package), log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE)
    server = uvicorn.Server(config)
    with listen(host, port) as listening, suppress(KeyboardInterrupt):
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        print(f"{package.config['name']}: {len(package.item_ids):,} items on {address}, documented at /docs", flush=True)
        server.run(sockets=[listening])


class _Arguments(argparse.ArgumentParser):
    """As `common.arguments.Arguments`, which a package does not have."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"serve: {message}; `python serve.py --help` lists the options\n")


def main() -> None:
    parser = _Arguments(description="Answer requests for recommendations over HTTP.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="the package; by default this folder")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reachable from other machines (127.0.0.1)")
    parser.add_argument("--port", type=port_number, default=8000, help="0: any free port, which the first line names (8000)")
    given = parser.parse_args()
    try:
        serve(given.folder, given.host, given.port)
    except PackageError as error:
        sys.exit(f"serve: {error}")
    except ImportError as error:
        sys.exit(f"serve: the Python package {error.name} is not installed; run `pip install -r requirements.txt`")


if __name__ == "__main__":
    main()
