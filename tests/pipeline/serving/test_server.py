"""The server of a package, asked by an HTTP client over a socket."""

import asyncio
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving import requests_at, serving
from pipeline.artifacts import sha256
from pipeline.serving import server
from pipeline.serving.recommender import Recommender
from pipeline.serving.server import BODY, HISTORY, LISTED, K

pytestmark = pytest.mark.xdist_group("serving")
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def port(packaged: Path) -> Iterator[int]:
    """Of a server that runs in the package, without the project on its path."""
    with serving(packaged) as port:
        yield port


def ask(port: int, body: Any, method: str = "POST", path: str = "/recommend") -> tuple[int, Any]:
    """Status and JSON of an answer. body: bytes as they are, anything else as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body).encode(), JSON)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_answers_are_the_checkpoints(port: int, checkpoint: Recommender) -> None:
    histories = [checkpoint.history_of(user) for user in checkpoint.users["user_id"][:20]]
    for mine in checkpoint.recommend(histories, 10).partition_by("request"):
        status, found = ask(port, {"history": histories[mine["request"][0]]})
        assert status == 200
        assert found["source"] == "model"
        assert [item["item_id"] for item in found["items"]] == mine["item_id"].to_list()
        assert [item["title"] for item in found["items"]] == mine["title"].to_list()
        np.testing.assert_allclose([item["score"] for item in found["items"]], mine["score"], atol=1e-4)


def test_options_reach_the_model(port: int, checkpoint: Recommender) -> None:
    ids = checkpoint.item_ids
    options = {"k": 5, "exclude_history": False, "allow": ids[:20], "deny": ids[:4]}
    status, found = ask(port, {"history": ids[:6]} | options)
    assert status == 200
    assert [item["item_id"] for item in found["items"]] == checkpoint.recommend([ids[:6]], **options)["item_id"].to_list()
    status, found = ask(port, {"history": ["new", *ids[:2]], "skip_unknown": True})
    assert found == ask(port, {"history": ids[:2]})[1]


def test_a_user_without_history_gets_the_most_popular(port: int, checkpoint: Recommender) -> None:
    for body in ({}, {"history": []}):
        status, found = ask(port, body)
        assert (status, found["source"]) == (200, "popularity")
        assert [item["item_id"] for item in found["items"]] == checkpoint.recommend([[]])["item_id"].to_list()


def test_health_names_the_run(port: int, checkpoint: Recommender) -> None:
    status, found = ask(port, b"", "GET", "/health")
    assert status == 200
    assert found == {
        "status": "ok",
        "name": checkpoint.run.name,
        "items": len(checkpoint.item_ids),
        "run": checkpoint.run.fingerprint,
    }


def test_the_openapi_page_describes_requests_and_answers(port: int) -> None:
    status, schema = ask(port, b"", "GET", "/openapi.json")
    assert status == 200
    assert set(schema["paths"]) == {"/recommend", "/health"}
    history = schema["components"]["schemas"]["Asked"]["properties"]["history"]
    assert history["maxItems"] == HISTORY
    assert set(schema["components"]["schemas"]["Answer"]["properties"]) == {"source", "items"}


MISTAKES: dict[str, tuple[Any, int, str]] = {
    "an unknown item": ({"history": ["new"]}, 422, "history: unknown item 'new'"),
    "an unknown item of deny": ({"deny": ["new"]}, 422, "deny: unknown item 'new'"),
    "a number for an item": ({"history": [3]}, 422, "history.0: Input should be a valid string"),
    "a text for a list": ({"history": "item"}, 422, "history: Input should be a valid list"),
    "null for a list": ({"history": None}, 422, "history: Input should be a valid list"),
    "a long history": ({"history": ["x"] * 10_000}, 422, f"history: List should have at most {HISTORY} items"),
    "a long list": ({"allow": ["x"] * (LISTED + 1)}, 422, f"allow: List should have at most {LISTED} items"),
    "a long item": ({"history": ["x" * 300]}, 422, "history.0: String should have at most 256 characters"),
    "no items wanted": ({"k": 0}, 422, "k: Input should be greater than or equal to 1"),
    "too many items wanted": ({"k": K + 1}, 422, f"k: Input should be less than or equal to {K}"),
    "an enormous number": ({"k": 10**400}, 422, "k: "),
    "a text for a number": ({"k": "10"}, 422, "k: Input should be a valid integer"),
    "a number for a switch": ({"exclude_history": 1}, 422, "exclude_history: Input should be a valid boolean"),
    "a misspelt field": ({"histry": []}, 422, "histry: Extra inputs are not permitted"),
    "a list for the body": ([], 422, "the body is not a JSON object"),
    "half a surrogate": (b'{"history": ["\\ud800"]}', 422, "history.0: "),
    "half a surrogate as a field": (b'{"\\ud800": 1}', 422, ""),
    "not a number": (b'{"history": [NaN]}', 422, "history.0: "),
    "no body": (b"", 422, "body: Field required"),
    "no JSON": (b'{"history": [', 400, "the body is not JSON"),
    "no UTF-8": (b'{"history": ["\xff\xfe"]}', 400, ""),
    "no end of nesting": (b"[" * 500_000, 400, ""),
    "a huge body": (b" " * (3 * BODY), 413, f"the body is longer than {BODY} bytes"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_by_one_error(port: int, mistake: str) -> None:
    body, status, says = MISTAKES[mistake]
    found = ask(port, body)
    assert found[0] == status
    assert set(found[1]) == {"error"}
    assert says in found[1]["error"]
    assert "\n" not in found[1]["error"]
    assert ask(port, {})[0] == 200, "the server goes on"


def test_every_id_that_is_recommended_may_be_sent(packaged: Path, tmp_path: Path) -> None:
    """Ids are 400 characters long, such as addresses; the longest list of them is a body of more than BODY bytes."""
    folder = tmp_path / "package"
    shutil.copytree(packaged, folder)
    items = json.loads((folder / "items.json").read_text())
    items["ids"] = [item.ljust(400, "x") for item in items["ids"]]
    (folder / "items.json").write_text(json.dumps(items))
    sidecar = json.loads((folder / "sidecar.json").read_text())
    sidecar["files"]["items.json"] = sha256(folder / "items.json")
    (folder / "sidecar.json").write_text(json.dumps(sidecar))
    with serving(folder) as port:
        denied = (items["ids"][:50] * LISTED)[:LISTED]
        status, found = ask(port, {"history": items["ids"][:3], "deny": denied})
        assert status == 200
        assert not {item["item_id"] for item in found["items"]} & {*items["ids"][:50]}


def test_a_python_package_that_is_missing_is_one_line(packaged: Path, tmp_path: Path) -> None:
    for name in ("numpy", "onnxruntime", "uvicorn"):
        shadow = tmp_path / name
        shadow.mkdir()
        (shadow / f"{name}.py").write_text(f"raise ModuleNotFoundError('none', name={name!r})")
        done = subprocess.run(
            [sys.executable, "serve.py"],
            cwd=packaged,
            env=os.environ | {"PYTHONPATH": str(shadow)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == f"serve: the Python package {name} is not installed; run `pip install -r requirements.txt`\n"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/recommend", 405), ("POST", "/none", 404), ("PUT", "/health", 405)]
)
def test_a_wrong_address_is_answered_by_one_error(port: int, method: str, path: str, status: int) -> None:
    found = ask(port, {}, method, path)
    assert found[0] == status
    assert set(found[1]) == {"error"}


def test_a_body_of_another_type_is_told_which_one_is_wanted(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/recommend", b'{"k": 3}', {"Content-Type": "text/plain"})
    response = connection.getresponse()
    assert response.status == 422
    assert "Content-Type: application/json" in json.loads(response.read())["error"]


def test_a_client_that_stops_in_the_middle_harms_nobody(port: int) -> None:
    for sent in (
        b"POST /recommend HTTP/1.1\r\nContent-Le",
        b"POST /recommend HTTP/1.1\r\nContent-Length: 100\r\n\r\n{",
        b"\0\1\2",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(sent)
    assert ask(port, {})[0] == 200


def test_a_body_that_stalls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STALLED", 0.05)
    sent: list[dict[str, Any]] = []

    async def stalled() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(server.BodyLimit(None, 100)({"type": "http"}, stalled, send))
    assert [message.get("status") for message in sent] == [408, None]
    assert json.loads(sent[1]["body"]) == {"error": "nothing of the body came in 0.05 seconds"}


@pytest.mark.slow
def test_a_client_that_stalls_does_not_keep_the_server_from_stopping(packaged: Path) -> None:
    process = subprocess.Popen([sys.executable, "serve.py", "--port", "0"], cwd=packaged, stdout=subprocess.PIPE, text=True)
    port = int(re.search(r"http://127\.0\.0\.1:(\d+), documented", process.stdout.readline())[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"POST /recommend HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        assert ask(port, {})[0] == 200, "the server has both connections"
        process.terminate()
        process.wait(timeout=20)  # well below the 30 seconds after which the body is refused
    process.stdout.close()


def test_mistakes_between_good_requests_disturb_none(port: int, packaged: Path) -> None:
    """A second of load, with every mistake in between."""
    stop = threading.Event()
    unexpected = []

    def mistaken() -> None:
        while not stop.is_set():
            for name, (body, status, _) in MISTAKES.items():
                if ask(port, body)[0] != status:
                    unexpected.append(name)

    thread = threading.Thread(target=mistaken)
    thread.start()
    answers = requests_at(port, packaged, rate=40, seconds=1, clients=4)
    stop.set()
    thread.join()
    assert not unexpected
    assert [status for status, _ in answers] == [200] * 40


@pytest.mark.slow
def test_hundreds_of_requests_a_second_are_answered_and_none_is_lost(port: int, packaged: Path) -> None:
    """benchmarks/serving.py measures more; a busy machine passes this."""
    answers = requests_at(port, packaged, rate=100, seconds=10)
    assert [status for status, _ in answers] == [200] * 1000
    assert np.percentile([seconds for _, seconds in answers], 99) < 2


def test_a_folder_that_is_no_package_is_one_line(packaged: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(packaged, folder)
    (folder / "vectors.npy").write_bytes((folder / "vectors.npy").read_bytes()[:-4])
    for command in (["serve.py"], ["serve.py", "none"]):
        done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("serve: ")
        assert len(done.stderr.splitlines()) == 1


def started(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "serve.py", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def test_an_address_that_cannot_be_had_is_one_line_and_no_server_is_announced(packaged: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, says in (
            (["--port", port], f"serve: cannot listen on host 127.0.0.1, port {port}: Address already in use; choose another"),
            (
                ["--host", ""],
                "serve: --host is empty, which would open the port to the network; name an address",
            ),
            (["--host", "no.such.host.invalid"], "serve: cannot listen on host no.such.host.invalid, port 8000: "),
        ):
            done = started(packaged, *arguments)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith(says)
            assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("port", ["65536", "99999", "-1", "http"])
def test_a_port_that_no_machine_has_is_refused(packaged: Path, port: str) -> None:
    done = started(packaged, f"--port={port}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"serve: argument --port: '{port}' is no port; choose a number from 1 to 65535, or 0 for any free port; "
        "`python serve.py --help` lists the options\n"
    )


def test_port_0_is_any_free_one_which_the_first_line_names(packaged: Path) -> None:
    server = subprocess.Popen([sys.executable, "serve.py", "--port", "0"], cwd=packaged, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+), documented", line)[1])
        assert port > 0
        assert ask(port, {})[0] == 200
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
