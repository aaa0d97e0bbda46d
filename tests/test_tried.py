"""docs/tried.md is what the markers of the tests say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "tried.py"


def test_the_page_is_what_the_tests_say() -> None:
    done = subprocess.run([sys.executable, str(PAGE), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run python docs/tried.py\n{done.stderr}"
    rows = [line.split(" | ") for line in PAGE.with_suffix(".md").read_text("utf-8").splitlines() if "test_" in line]
    assert len(rows) > 30
    assert {len(row) for row in rows} == {3}
