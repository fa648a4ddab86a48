"""fused_label_smoothed_cross_entropy.py: under torch's DistributedDataParallel, and models that it cannot train.

That loss, logging and gradients are fairseq's is in test_interchange.py, the arithmetic in test_fused.py.
"""

import pytest
import torch
from fairseq.distributed import ModuleProxyWrapper
from tiny_models import batch, built
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from fairseq_lnplugin.fused_label_smoothed_cross_entropy import FusedLabelSmoothedCrossEntropy
from fairseq_lnplugin.transformer_ln_study import Decoder


def gradients(model, wrapped, sample):
    """Gradients by name after one batch through ``wrapped``, ``model`` or a wrapper of it."""
    task = type("Task", (), {"target_dictionary": model.decoder.dictionary})
    loss, _, _ = FusedLabelSmoothedCrossEntropy(task, False, 0.1)(wrapped.train(), sample)
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def one_worker(tmp_path):
    """A group of one process over gloo."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("find_unused", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_torchs_distributed_training_gives_the_same_gradients(tied, find_unused, one_worker):
    """--ddp-backend pytorch_ddp, with and without --find-unused-parameters: the output's weight is in use."""
    model = built(ln_position="pre", dropout=0.0, share_decoder_input_output_embed=tied)
    expected = gradients(model, model, batch())
    model.zero_grad()
    wrapped = ModuleProxyWrapper(DistributedDataParallel(model, find_unused_parameters=find_unused))
    for name, gradient in gradients(model, wrapped, batch()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0, msg=name)


class Copying(Decoder):
    """A decoder whose logits are more than a product, as those of a pointer-generator."""

    def output_layer(self, features):
        return super().output_layer(features) + 1


@pytest.mark.parametrize("case", ["another output layer", "a bias"])
def test_a_decoder_whose_logits_are_more_than_a_product_is_refused(case):
    """Its loss would be another."""
    model = built()
    if case == "a bias":
        model.decoder.output_projection.bias = torch.nn.Parameter(torch.ones(len(model.decoder.dictionary)))
    else:
        model.decoder.__class__ = Copying
    task = type("Task", (), {"target_dictionary": model.decoder.dictionary})
    with pytest.raises(SystemExit, match="needs a decoder with a plain output projection"):
        FusedLabelSmoothedCrossEntropy(task, False, 0.1)(model, batch())


def test_a_model_that_gives_no_features_is_refused_in_a_sentence():
    """As fairseq's transformer_align, whose forward knows no such thing."""
    model = built()
    model.__class__ = type("Align", (type(model),), {"forward": lambda self, src_tokens, src_lengths, prev_output_tokens: None})
    task = type("Task", (), {"target_dictionary": model.decoder.dictionary})
    with pytest.raises(SystemExit, match="or gives no features; use the --criterion of its task"):
        FusedLabelSmoothedCrossEntropy(task, False, 0.1)(model, batch())


def test_a_model_without_a_decoder_is_refused_in_a_sentence():
    """The masked-LM encoder has a head of its own and a criterion of its own."""
    model = built()
    task = type("Task", (), {"target_dictionary": model.decoder.dictionary})
    with pytest.raises(SystemExit, match="needs a decoder with a plain output projection, and this model has .* or none"):
        FusedLabelSmoothedCrossEntropy(task, False, 0.1)(model.encoder, batch())
