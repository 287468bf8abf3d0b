"""Where tests find files: the project, the small files that come with it, and larger real ones where there are any."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared"  # what needs it is skipped without
REAL = SHARED / "data"  # real checkpoints with the logits that transformers computes, tokenizers, corpora, graphs
