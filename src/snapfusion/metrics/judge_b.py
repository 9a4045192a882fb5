"""Judge B: Inception and the second half of the training pictures. Only `stages/evaluate` may import it.

What a search has never seen cannot have been fooled by it: B shares with A neither backbone, nor pictures, nor seed.
`tests/metrics/test_judges.py` proves that nothing that trains or searches can reach it.
"""

from snapfusion.metrics.features import load_inception as load_backbone

HALF = 1
SEED = 1

__all__ = ["HALF", "SEED", "load_backbone"]
