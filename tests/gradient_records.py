"""Measurements as ``fairseq-ln gradients`` makes them, with planted numbers, for the tests of its report."""

FACTS = {
    "data": {"name": "iwslt14-de-en", "subset": "train", "pairs": 160_239, "languages": "de-en", "types": [9000, 7000]},
    "lr_adam": 5e-4,
    "lr_sgd": 5e-3,
    "environment": {"commit": "0123abc", "dirty": False, "device": "a CPU", "torch": "2.5.1"},
}
SHARED = {
    **{"subset": "train", "max_tokens": 4096, "batches": 16, "arch": "transformer_ln_study_iwslt_de_en"},
    **{"dropout": 0.1, "label_smoothing": 0.1, "compute_dtype": "float32"},
}


def record(layers, position, seed, norm, delta=0.01, checkpoint=None, weight_init="xavier_uniform", training=None):
    """A measurement; ``norm`` and ``delta`` are numbers, or functions of a row's stack and layer.

    ``checkpoint``: the hash of one after 4000 updates; ``training``: how it was trained, with that warm-up if it is left out.
    """

    def value(planted, stack, layer):
        return planted(stack, layer) if callable(planted) else planted

    def matrix(stack, layer, name):
        here = value(norm, stack, layer)
        gradients = dict.fromkeys(("expected_gradient", "batch_gradient", "unbiased_gradient"), here)
        return {"stack": stack, "layer": layer, "matrix": name, "weight": 10.0, "adam_first": 2.0, "adam_still": 1.0, **gradients}

    trained = checkpoint and {"updates": 4000, "sha256": checkpoint, "training": training or {"warmup_updates": 4000}}
    places = [(stack, layer + 1) for stack in ("encoder", "decoder") for layer in range(layers)]
    return {
        "shared": SHARED,
        "unit": {"weight_init": weight_init, "ln_position": position, "layers": layers, "checkpoint": trained, "seed": seed},
        "matrices": [matrix(*place, name) for place in places for name in ("fc1.weight", "fc2.weight")],
        "hidden": [
            {"stack": stack, "layer": layer, "mean": 1.5, "epsilon": 0.05, "delta": value(delta, stack, layer), "tokens": 9}
            for stack, layer in places
        ],
        "seconds": 1.0,
    }
