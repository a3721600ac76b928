"""The 1000 classes of ImageNet-1k in the order of the official models' outputs.

WordNet ids, ascending, each with its first lemma; where two classes share a lemma, the next one tells them apart.

Source: WordNet 3.0 (https://wordnet.princeton.edu), as chosen by ILSVRC 2012.
"""

from pathlib import Path

_ROWS = Path(__file__).with_name("imagenet_labels.txt").read_text(encoding="utf-8").splitlines()

LABELS: tuple[str, ...] = tuple(row.partition(" ")[2] for row in _ROWS)
