"""The page in a browser: it is drawn, nothing complains, nothing is fetched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

from PIL import Image

from dataprune.lab.report import page
from dataprune.lab.sweeps.compare import Comparison
from dataprune.lab.sweeps.sweep import carry_out

pytestmark = pytest.mark.slow  # a browser takes seconds to start
SECTIONS = ("accuracy-and-differences", "retention-by-class", "samples-kept-and-pruned", "configuration-and-checks")


@pytest.fixture(scope="module")
def browser() -> str:
    path = shutil.which("chromium")
    if path is None:
        missing = "no chromium: install the Debian package chromium"
        if os.environ.get("CI"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    data = tiny.data()._replace(classes=["<b>a</b>", "b", "c", "d"])
    carry_out(Comparison(tiny.settings(method=""), ("full", "short", "emp"), seeds=(0, 1)), out, data=data)
    return page.write([out], out, data=data)[0]


def opened(browser: str, profile: Path, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
        f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", "--no-first-run", *options, path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_document_is_whole_and_nothing_complains(browser: str, made: Path, tmp_path: Path) -> None:
    done = opened(browser, tmp_path / "profile", made, "--dump-dom")
    assert not complaints(done)
    assert done.stdout.rstrip().endswith("</html>")
    for name in SECTIONS:
        assert f'<h2 id="{name}">' in done.stdout
    written = made.read_text()
    for element in (
        "<svg",
        "<table",
        "<image",
        "<figure",
        "<g ",
        "<path",
        "<use",
    ):  # none was moved or dropped by the parser
        assert done.stdout.count(element) == written.count(element), element
    assert "<b>a</b>" not in done.stdout

    wrong = tmp_path / "wrong.html"  # this is how it would show if something were fetched
    wrong.write_text(written.replace("<main", '<img src="http://localhost:9/x.png" alt=""><main'))
    assert any(
        "Content Security Policy" in line for line in complaints(opened(browser, tmp_path / "p2", wrong, "--dump-dom"))
    )


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_drawn_in_both_themes(browser: str, made: Path, tmp_path: Path, dark: bool) -> None:
    shot = tmp_path / "shot.png"
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = opened(browser, tmp_path / "profile", made, f"--screenshot={shot}", "--window-size=800,6000", theme)
    assert not complaints(done)
    with Image.open(shot) as opened_image:
        image = opened_image.convert("RGB")
    assert len(image.getcolors(1 << 24)) > 200
    assert image.getpixel((2, 2)) == ((0x14, 0x18, 0x1C) if dark else (255, 255, 255))
    for top in range(0, 3000, 500):  # no stretch of it is blank
        assert len(image.crop((0, top, 800, top + 500)).getcolors(1 << 24)) > 20


def test_colours_have_contrast_in_both_themes(made: Path) -> None:
    themes = re.findall(r":root \{([^}]*)\}", made.read_text())
    assert len(themes) == 2
    for theme in themes:
        colors = dict(re.findall(r"--([\w-]+): (#\w+)", theme))
        for name, color in colors.items():
            least = {"ground": 0, "line": 0, "grid": 0, "tint": 0}.get(name, 3 if re.fullmatch(r"c\d", name) else 4.5)
            for ground in ("ground", "tint"):
                assert contrast(color, colors[ground]) >= least, (name, color)


def contrast(color: str, other: str) -> float:
    """Source: WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(color), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
