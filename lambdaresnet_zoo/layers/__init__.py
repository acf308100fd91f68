"""The mathematics: lambda layers, their reference and their contraction orders. Knows torch alone."""

from .lambda_layer import LambdaLayer, RelativePosition
from .pooling import CeilAvgPool2d
from .reference import lambda_reference, multihead_lambda_reference
from .sequence import LambdaSequence

__all__ = [
    "CeilAvgPool2d",
    "LambdaLayer",
    "LambdaSequence",
    "RelativePosition",
    "lambda_reference",
    "multihead_lambda_reference",
]
