"""Draw the picture of each notebook again: a cell of its page in a site that was built with outputs.

python docs/notebook_pictures.py docs/_build
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parent / "images" / "notebooks"
# By notebook, a line of each cell that is shown; `09_real_models` has the picture of the page on real models.
CELLS = {
    "01_quickstart": ['result.plot("尊敬語");'],
    "02_japanese_morphology": ["from moelens.analysis import layer_curve"],
    "03_honorifics_from_specialization_to_cause": ["preferences = moelens.prefer("],
    "04_record_a_large_model": ['moelens.plan("deepseek_v3", gpus=8'],
    "05_your_own_model": ["model = moelens.hook(plain"],
    "06_export_and_scripted_probes": ["probe = moelens.probe("],
    "07_rakuten_ai_3": ["comparison = moelens.compare(base, changed"],
    "08_writing_hooks": ["recipe_file.write_text(", "recipe = moelens.load_hooks("],
    "10_my_model_my_corpus": ['found.plot("尊敬語");'],
    "10_my_model_my_corpus.ja": ['found.plot("尊敬語", lang="ja");'],
}
HEIGHT = 760
"""The largest height in pixels; what is below it is cut off."""


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="folder of the built site")
    site = parser.parse_args().site.resolve()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        for name, lines in CELLS.items():
            page.goto((site / "gallery" / f"{name}.html").as_uri())
            boxes = []
            for line in lines:
                cells = page.locator("div.cell").filter(has_text=line)
                assert cells.count() == 1, f"expected one cell with {line!r} in {name}, got {cells.count()}"
                boxes.append(cells.bounding_box())
            left, top = min(b["x"] for b in boxes), min(b["y"] for b in boxes)
            bottom = max(b["y"] + b["height"] for b in boxes)
            width = max(b["width"] for b in boxes)
            clip = {"x": left, "y": top, "width": width, "height": min(bottom - top, HEIGHT)}
            page.screenshot(path=PICTURES / f"{name}.png", clip=clip, full_page=True)


if __name__ == "__main__":
    main()
