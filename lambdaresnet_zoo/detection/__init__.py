"""Detection networks: torchvision's Mask R-CNN, Faster R-CNN and RetinaNet on this package's networks."""

from .backbone import NORMS, Pyramid, check_backbone
from .complexity import Complexity, complexity
from .models import DETECTORS, faster_rcnn, mask_rcnn, retinanet

__all__ = [
    "DETECTORS",
    "NORMS",
    "Complexity",
    "Pyramid",
    "check_backbone",
    "complexity",
    "faster_rcnn",
    "mask_rcnn",
    "retinanet",
]
