"""WHERE WEIGHTS START: one function a scheme, the choices of ``--weight-init``.

Embeddings start as fairseq's do in every scheme, attention in all but ``xavier_normal``. fairseq >= 0.10 builds the FFN with
``nn.Linear``'s own start (Kaiming uniform with a = sqrt(5), random biases), which has eight times less output variance than the
Xavier start of the paper's time at the IWSLT14 size, so that Pre-LN's growth and the gradients of W2 come out weaker.
"""

import torch.nn as nn


def fairseq(layer):
    """Leave the layer as the installed fairseq made it."""


def xavier_uniform(layer):
    """FFN: Xavier uniform (Glorot & Bengio 2010), zero biases, as fairseq <= 0.9; attention as fairseq."""
    for linear in (layer.fc1, layer.fc2):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)


def xavier_normal(layer):
    """Every matrix of the layer N(0, 2 / (fan_in + fan_out)), zero biases: the theory's, but for its W_Q = W_K = 0."""
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)


WEIGHT_INITS = {"xavier_uniform": xavier_uniform, "xavier_normal": xavier_normal, "fairseq": fairseq}
