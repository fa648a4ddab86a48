"""The obvious way to measure figure 3, which gradients_speed.py compares ``fairseq-ln gradients`` with.

fairseq's own ``transformer`` and criterion in float32, one whole backward a mini-batch, the gradients of all parameters
summed. Prints one JSON line: ``seconds`` of the mini-batches with the ``norms`` of the sums, building and loading left out,
and the mini-batches' target ``tokens``.

    python benchmarks/naive_gradients.py BATCHES FAIRSEQ-TRAIN-ARGUMENT...
"""

import json
import sys
import time

import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

import fairseq_lnplugin  # noqa: F401  # fairseq on today's torch


def main(batches, arguments):
    """Measure ``batches`` mini-batches of the training that these arguments describe."""
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    utils.set_torch_seed(cfg.common.seed)
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    epoch = task.get_batch_iterator(
        task.dataset("train"),
        max_tokens=cfg.dataset.max_tokens,
        max_positions=utils.resolve_max_positions(task.max_positions(), model.max_positions()),
        ignore_invalid_inputs=True,
        seed=cfg.common.seed,
    ).next_epoch_itr(shuffle=True)
    model.train()
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    tokens, began = [], time.perf_counter()
    for _ in range(batches):
        sample = next(epoch)
        model.zero_grad()
        loss, sample_size, _ = criterion(model, sample)
        (loss / sample_size).backward()
        for name, parameter in model.named_parameters():
            sums[name] += parameter.grad
        tokens.append(sample["ntokens"])
    norms = {name: (value / batches).norm().item() for name, value in sums.items()}
    print(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens, "norms": norms}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
