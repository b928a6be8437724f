"""Pictures of sections of a page that examples/look_inside.py wrote, by headless Chromium.

    python docs/screenshot.py look_inside.html docs/look_inside.png \\
        "Where it looks" "What excites a channel"

Without a section's title it is the whole page.  Needs Chromium on the path, and Pillow.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

TALLEST = 16_000  # pixels; what is below the end of a page is cut off


def only(page: str, titles: list[str]) -> str:
    """The page without its head and without the sections of other titles."""
    start, *sections = page.split("<section>")
    sections[-1], end = sections[-1].split("</body>")
    chosen = [s for s in sections if any(f"<h2>{title}</h2>" in s for title in titles)]
    if len(chosen) != len(titles):
        found = ", ".join(s[s.index("<h2>") + 4 : s.index("</h2>")] for s in sections)
        raise SystemExit(f"error: expected titles among {found}")
    head = start[: start.index("<body>") + len("<body>")]
    return f"{head}{''.join('<section>' + s for s in chosen)}</body>{end}"


def photograph(page: Path, picture: Path, width: int, dark: bool) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("error: there is no chromium on the path")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={profile}", f"--window-size={width},{TALLEST}",
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
    parser.add_argument("--dark", action="store_true", help="for a reader whose system is dark")
    return parser.parse_intermixed_args(argv)  # titles may stand before or behind the options


def main() -> int:
    options = parse_arguments()
    page = options.page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "page.html"
        shown.write_text(only(page, options.titles) if options.titles else page, encoding="utf-8")
        photograph(shown, options.picture, options.width, options.dark)
    return 0


if __name__ == "__main__":
    sys.exit(main())
