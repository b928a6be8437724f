"""Take a screenshot of sections of a page from examples/look_inside.py, in headless Chromium.

    python docs/screenshot.py look_inside.html docs/look_inside.png \\
        "Where it looks" "What excites a channel"

Without titles, the picture shows the whole page.  Requires Chromium on PATH, and Pillow.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

MAX_HEIGHT = 16_000  # pixels; the empty part below the page is cropped


def select_sections(page: str, titles: list[str]) -> str:
    """The page without its header, with the sections of these titles only."""
    start, *sections = page.split("<section>")
    sections[-1], end = sections[-1].split("</body>")
    chosen = [s for s in sections if any(f"<h2>{title}</h2>" in s for title in titles)]
    if len(chosen) != len(titles):
        found = ", ".join(s[s.index("<h2>") + 4 : s.index("</h2>")] for s in sections)
        raise SystemExit(
            f"error: expected titles of sections, got {', '.join(titles)}; there are {found}"
        )
    head = start[: start.index("<body>") + len("<body>")]
    return f"{head}{''.join('<section>' + s for s in chosen)}</body>{end}"


def take_screenshot(page: Path, picture: Path, width: int, dark: bool) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("error: found no chromium on PATH; install it")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={profile}", f"--window-size={width},{MAX_HEIGHT}",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--screenshot={picture.resolve()}", page.resolve().as_uri(),
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
    with Image.open(picture) as file:
        image = file.convert("RGB")
    paper = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    box = ImageChops.difference(image, paper).getbbox()
    bottom = image.height if box is None else min(image.height, box[3] + 16)
    cut = image.crop((0, 0, image.width, bottom))
    cut.quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path, metavar="PAGE")
    parser.add_argument("picture", type=Path, metavar="PICTURE")
    parser.add_argument("titles", nargs="*", metavar="TITLE")
    parser.add_argument("--width", type=int, default=960, metavar="PIXELS")
    parser.add_argument("--dark", action="store_true", help="use the dark theme")
    return parser.parse_intermixed_args(argv)  # titles may come before or after the options


def main() -> int:
    options = parse_arguments()
    page = options.page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "page.html"
        shown.write_text(
            select_sections(page, options.titles) if options.titles else page, encoding="utf-8"
        )
        take_screenshot(shown, options.picture, options.width, options.dark)
    return 0


if __name__ == "__main__":
    sys.exit(main())
