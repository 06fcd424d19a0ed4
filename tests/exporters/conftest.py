"""Puts `models/` on the path: the zoo's scripts import one another by bare names."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "models")]
