"""The report in a browser: at the width of a desk and of a phone, in light and in dark.

Needs Debian's Chromium (`apt-get install chromium`); the check of accessibility also needs npm and its registry.
"""

import html
import json
import os
import re
import shutil
import subprocess
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipeline.report import captions
from pipeline.report.figures import Figures
from pipeline.report.html import report_html
from pipeline.report.sections import Figure, Section
from tests.pipeline.report.conftest import tiny_report
from tests.pipeline.report.values import GAINS, NO_RUNS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; `apt-get install chromium` brings one"),
]
SETTINGS = [(width, mode) for width in (1280, 390) for mode in ("light", "dark")]
AXE = "axe.min.js"

# Shows the page in a frame, which may be as narrow as a phone, and writes what it finds into its own <pre>.
PROBE = """<!DOCTYPE html><title>Probe</title><iframe src="report.html" style="border: 0; width: WIDTHpx; height: 900px"></iframe>
<pre></pre><script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", async () => {
  const page = frame.contentWindow, tree = frame.contentDocument, root = tree.documentElement;
  const found = {width: page.innerWidth, needed: root.scrollWidth, dark: page.matchMedia("(prefers-color-scheme: dark)").matches};
  found.headings = [...tree.querySelectorAll("h1, h2, h3, h4")].map(heading => Number(heading.tagName[1]));
  found.ground = page.getComputedStyle(tree.body).backgroundColor;
  const line = tree.querySelector("svg text");
  found.ink = line ? page.getComputedStyle(line).fill : null;
  const head = tree.querySelector("thead th:nth-child(2)");
  found.order = [];
  for (let i = 0; head && i < 2; i++) {
    head.querySelector("button").click();
    const cells = [...head.closest("table").tBodies[0].rows].map(row => Number(row.cells[1].dataset.value));
    found.order.push([head.getAttribute("aria-sort"), cells]);
  }
  const script = tree.createElement("script");
  script.src = "axe.min.js";
  script.onload = async () => {
    const result = await page.axe.run(tree, {resultTypes: ["violations"]});
    const grave = result.violations.filter(one => ["serious", "critical"].includes(one.impact));
    found.violations = grave.map(one => `${one.id}: ${one.nodes.map(node => node.html.slice(0, 120)).join(" | ")}`);
    document.querySelector("pre").textContent = JSON.stringify(found);
  };
  script.onerror = () => document.querySelector("pre").textContent = JSON.stringify(found);
  if (WITH_AXE) tree.head.append(script); else script.onerror();
});
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def page(project: Path) -> Path:
    """A folder with a report of the tiny dataset and a forest plot, as report.html."""
    report, _ = tiny_report()
    figures = Figures(Path("figures"), "morec")
    figures.forest(GAINS, "NDCG@20", NO_RUNS)
    report.insert(1, Section("Gains", [Figure("forest", captions.forest(GAINS, NO_RUNS), "Intervals over users.")]))
    folder = Path("served").resolve()
    folder.mkdir()
    (folder / "report.html").write_text(report_html(report, Path("figures")), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script axe-core, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    packed = npm and subprocess.run([npm, "pack", "axe-core@4"], cwd=folder, capture_output=True, timeout=120, check=False)
    archives = list(folder.glob("*.tgz"))
    if not packed or not archives:
        pytest.skip("npm brings no axe-core here")
    with tarfile.open(archives[0]) as archive:
        archive.extract(f"package/{AXE}", folder, filter="data")
    return folder / "package" / AXE


def look(folder: Path, width: int, mode: str, with_axe: bool = False) -> dict[str, Any]:
    """Return what a browser finds of the folder's report.html, and the lines of its console as `console`."""
    probe = PROBE.replace("WIDTH", str(width)).replace("WITH_AXE", str(with_axe).lower())
    (folder / "probe.html").write_text(probe, encoding="utf-8")
    assert CHROMIUM is not None
    with served(folder) as address:
        command = [CHROMIUM, "--headless", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        command += ["--no-sandbox"] * (os.geteuid() == 0)
        command += ["--virtual-time-budget=60000", f"--window-size={max(width, 500)},900"]
        command += [f"--blink-settings=preferredColorScheme={int(mode == 'light')}", f"{address}/probe.html"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    written = re.search(r"<pre>(.*?)</pre>", shown.stdout, flags=re.DOTALL)
    assert written is not None, shown.stderr
    assert written[1], f"the page did not load: {shown.stderr}"
    found: dict[str, Any] = json.loads(html.unescape(written[1]))
    return found | {"console": [line for line in shown.stderr.splitlines() if "CONSOLE" in line]}


class served:  # noqa: N801 (used like a function)
    """Serve a folder on this machine while the block runs."""

    def __init__(self, folder: Path) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))

    def __enter__(self) -> str:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def skipped_levels(headings: list[int]) -> list[tuple[int, int]]:
    """Return the pairs of neighbouring headings of which the second is more than one level below the first."""
    return [(above, below) for above, below in zip([0, *headings], headings, strict=False) if below > above + 1]


@pytest.mark.parametrize(("width", "mode"), SETTINGS)
def test_the_report_fits_and_says_nothing_on_the_console(page: Path, width: int, mode: str) -> None:
    found = look(page, width, mode)
    assert found["console"] == []
    assert found["width"] == width
    assert found["needed"] <= width, "nothing is wider than the window"
    assert found["headings"].count(1) == 1
    assert skipped_levels(found["headings"]) == []
    assert found["dark"] == (mode == "dark")
    assert (found["ground"] == "rgb(255, 255, 254)") == (mode == "light")
    assert (found["ink"] == "rgb(29, 32, 38)") == (mode == "light"), "the figures follow too"
    assert found["order"][0] == ["descending", sorted(found["order"][0][1], reverse=True)]
    assert found["order"][1] == ["ascending", sorted(found["order"][1][1])]


@pytest.mark.parametrize(("width", "mode"), SETTINGS)
def test_axe_finds_nothing_serious(page: Path, axe: Path, width: int, mode: str) -> None:
    shutil.copyfile(axe, page / AXE)
    assert look(page, width, mode, with_axe=True)["violations"] == []


def test_a_bad_page_is_found_out(page: Path, axe: Path) -> None:
    shutil.copyfile(axe, page / AXE)
    (page / "report.html").write_text(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Bad</title><link rel="icon" href="data:,"></head>'
        '<body><h1>One</h1><h3 style="width: 2000px; color: #ddd; background: #fff">Three</h3><img src="data:,">'
        "<script>nowhere()</script></body></html>"
    )
    found = look(page, 390, "light", with_axe=True)
    assert any("nowhere is not defined" in line for line in found["console"])
    assert found["needed"] > 390
    assert skipped_levels(found["headings"]) == [(1, 3)]
    assert {violation.partition(":")[0] for violation in found["violations"]} >= {"image-alt", "color-contrast"}
