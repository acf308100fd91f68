"""timm's three lambda networks, by our names."""

import timm
import torch
from torch import nn

PAIRS = {
    "lambdaresnet26t": "lambda_resnet26t",
    "lambdaresnet26rpt_256": "lambda_resnet26rpt_256",
    "lambdaresnet50ts": "lambda_resnet50ts",
}


def perturbed(name):
    """timm's, every parameter and statistic away from its initial zero or one."""
    torch.manual_seed(0)
    model = timm.create_model(PAIRS[name])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif isinstance(module, nn.Conv3d):
            nn.init.normal_(module.bias)
    return model.eval()
