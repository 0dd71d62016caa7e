"""A page's facts, out of a bundle that was built; and a browser to open pages in."""

import dataclasses
import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle.manifest import Exit, Policy
from edgekit.bundle.reader import read_bundle
from edgekit.report.bundles import collect
from edgekit.report.facts import Facts
from tests.conftest import once
from tests.debian import install

MEASURE = """
<script>
const found = {width: innerWidth, dark: matchMedia('(prefers-color-scheme: dark)').matches,
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color, figures: 0, texts: 0, problems: []};
const problem = (...words) => found.problems.push(words.join(' '));
found.height = document.documentElement.scrollHeight;
for (const one of document.querySelectorAll('details')) one.open = true;
if (document.documentElement.scrollWidth > innerWidth)
  problem('the page scrolls sideways:', document.documentElement.scrollWidth);
for (const one of document.querySelectorAll('body *')) {
  if (one.closest('.table, pre, svg')) continue;
  const box = one.getBoundingClientRect();
  if (box.right > innerWidth + 0.5 || box.left < -0.5)
    problem('sticks out:', one.outerHTML.slice(0, 60));
}
for (const image of document.images)
  if (!image.complete || !image.naturalWidth) problem('an image is not drawn:', image.alt);
for (const figure of document.querySelectorAll('figure')) {
  const name = figure.querySelector('figcaption').textContent;
  const svg = figure.querySelector('svg');
  const box = svg.getBoundingClientRect(), around = svg.parentElement.getBoundingClientRect();
  found.figures += 1;
  if (box.width < 100 || box.height < 40) problem(name, 'is not drawn:', box.width, box.height);
  if (box.right > around.right + 1 || box.left < around.left - 1) problem(name, 'leaves its place');
  const texts = [...svg.querySelectorAll('text')].map(one => [one, one.getBoundingClientRect()]);
  found.texts += texts.length;
  if (texts.length < 2) problem(name, 'has no words');
  texts.forEach(([one, here], row) => {
    if (here.left < box.left - 1 || here.right > box.right + 1 || here.top < box.top - 1
        || here.bottom > box.bottom + 1) problem(name, 'cuts off:', one.textContent);
    for (const [other, there] of texts.slice(row + 1)) {
      const wide = Math.min(here.right, there.right) - Math.max(here.left, there.left);
      const high = Math.min(here.bottom, there.bottom) - Math.max(here.top, there.top);
      if (wide > 1.5 && high > 0.35 * Math.min(here.height, there.height))
        problem(name, 'lays', one.textContent, 'over', other.textContent);
    }
  });
}
document.title = 'measured ' + JSON.stringify(found);
</script>
"""

FRAME = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<iframe id="frame" style="border: 0; width: {width}px; height: 900px" srcdoc="{inner}"></iframe>
<script>frame.onload = () => {{ document.title = frame.contentDocument.title }}</script>
"""
"""A window without a screen is 500 pixels wide at least; a frame may be as narrow as a phone."""


class Browser:
    """Debian's Chromium without a window and without a network."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program = program
        self.folder = folder

    def measure(self, page: str, width: int, *, dark: bool) -> dict[str, Any]:
        """What a page comes to in a window of this width: see `MEASURE`."""
        # The page forbids all scripts, ours too.
        free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        copy = self.folder / "measured.html"
        inner = html.escape(free.replace("</body>", MEASURE + "</body>"))
        copy.write_text(FRAME.format(width=width, inner=inner), encoding="utf-8")
        dom = self._run(copy, 1400, 1000, "--dump-dom", dark=dark)
        (found,) = re.findall(r"<title>measured (.*?)</title>", dom, re.S)
        return json.loads(html.unescape(found))

    def screenshot(self, page: Path, to: Path, width: int, height: int, *, dark: bool) -> None:
        """A picture of the page as it is."""
        self._run(page, width, height, f"--screenshot={to}", dark=dark)

    def _run(self, page: Path, width: int, height: int, what: str, *, dark: bool) -> str:
        command = [
            self.program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage", "--force-device-scale-factor=1", "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={self.folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--window-size={width},{height}", what, page.as_uri(),
        ]  # fmt: skip
        ended = subprocess.run(command, capture_output=True, check=False, timeout=120)
        assert ended.returncode == 0, ended.stderr.decode()[-2000:]
        return ended.stdout.decode("utf-8")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """Installed through apt where it is not there and that may be done."""
    names = ("chromium", "chromium-browser", "google-chrome")
    find: Callable[[], str | None] = lambda: next(filter(None, map(shutil.which, names)), None)  # noqa: E731

    def make(folder: Path) -> None:
        install("chromium", "fonts-dejavu-core")
        folder.mkdir()

    if find() is None:
        once(tmp_path_factory, "chromium", make)  # By one test process, for all.
    found = find()
    if found is None:
        words = "pages are not looked at: there is no Chromium (apt-get install chromium)"
        # Whoever relies on the suite must not be told that all is well.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(words)
    return Browser(found, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="session")
def facts(built_tiny: Path) -> Facts:
    """Those of the tiny bundle."""
    return collect(read_bundle(built_tiny))


@pytest.fixture(scope="session")
def digits_facts(digits_bundle: Path) -> Facts:
    """Those of the bundle of digits."""
    return collect(read_bundle(digits_bundle))


def with_notes(facts: Facts, stage: str, notes: dict[str, Any]) -> Facts:
    """The facts, had a stage noted something else."""
    stages = [
        {**one, "notes": {**one["notes"], **notes}} if one["name"] == stage else one
        for one in facts.evidence["stages"]
    ]
    return dataclasses.replace(facts, evidence={**facts.evidence, "stages": stages})


def with_manifest(facts: Facts, **changes: Any) -> Facts:
    """The facts, had the manifest said something else."""
    manifest = dataclasses.replace(facts.manifest, **changes)
    return dataclasses.replace(facts, bundle=dataclasses.replace(facts.bundle, manifest=manifest))


def of_many(facts: Facts, names: tuple[str, ...]) -> Facts:
    """The facts of a chain as deep, made of the tiny one's."""
    variant, seen, bench = facts.manifest.variant(), facts.seen, facts.bench
    assert seen is not None
    assert bench is not None
    count = len(names)
    segments = tuple(
        dataclasses.replace(
            variant.segments[min(number, 1)], name=f"segment-{number}", exits=(Exit(name, "x"),)
        )
        for number, name in enumerate(names)
    )
    rows = [0] * (count - 1) + [2]
    tuning = facts.manifest.tuning
    assert tuning is not None
    deep = with_manifest(
        facts,
        variants=(dataclasses.replace(variant, exits=names, segments=segments),),
        policy=Policy("max_prob", tuple(0.3 + 0.01 * row for row in range(count - 1))),
        tuning=None,
    )
    rates = dict.fromkeys(names, 1 / count)
    return dataclasses.replace(
        with_notes(with_notes(deep, "verify", {"exit_rates": rates}), "tune",
                   {"exit_rates": rates}),
        seen=dataclasses.replace(seen, confidences=seen.confidences[rows],
                                 classes=seen.classes[rows]),
        samples=(),
        bench={
            **bench,
            "exits": [{**bench["exits"][0], "name": name} for name in names],
            "segments": [{**bench["segments"][0], "name": one.name} for one in segments],
        },
    )  # fmt: skip
