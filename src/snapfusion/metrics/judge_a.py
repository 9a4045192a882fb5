"""Judge A: ResNet-50 and the first half of the training pictures. May be searched and trained against."""

from snapfusion.metrics.features import load_resnet50 as load_backbone

HALF = 0
SEED = 0

__all__ = ["HALF", "SEED", "load_backbone"]
