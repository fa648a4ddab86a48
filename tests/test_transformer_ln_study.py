"""transformer_ln_study.py, layers.py, attention.py: equal to the paper's Table 1, also word by word and in TorchScript.

That they equal stock fairseq is in test_interchange.py.
"""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from reference import logits as reference_logits
from tiny_models import batch, built, dictionary, stock_of, task_of

from fairseq_lnplugin import attention, fused
from fairseq_lnplugin.layers import Dropout

DICTIONARY = dictionary(100)
PAD = DICTIONARY.pad()
BOUNDS = {"float32": 1e-5, "bfloat16": 3e-2}
TASK = task_of(DICTIONARY)


def build(position, task=TASK, **flags):
    return built(task, seed=7, ln_position=position, **{"dropout": 0.0, **flags})


@pytest.fixture
def sample():
    return batch(types=100)


@pytest.mark.parametrize("position", ["pre", "post"])
def test_logits_equal_the_papers_table_1(position, sample, operators):
    """Table 1, both positions, against tests/reference.py at target positions."""
    model = build(position).eval()
    inputs = sample["net_input"]
    ours = model(**inputs)[0]
    paper = reference_logits(
        dict(model.state_dict()),
        *(inputs[name] for name in ("src_tokens", "prev_output_tokens")),
        layers=2,
        heads=2,
        position=position,
        pad=PAD,
    )
    real = sample["target"].ne(PAD)
    torch.testing.assert_close(ours[real], paper[real], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("position", ["pre", "post"])
def test_incremental_decoding_equals_full_decoding(position, sample, operators):
    """Token by token with fairseq's incremental state, against all positions at once."""
    model = build(position).eval()
    prev = sample["net_input"]["prev_output_tokens"]
    with torch.no_grad():
        encoder_out = model.encoder.forward_torchscript(sample["net_input"])
        state = {}
        steps = [model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)[0] for t in range(prev.size(1))]
        full = model.decoder(prev, encoder_out)[0]
    real = prev.ne(PAD)
    torch.testing.assert_close(torch.cat(steps, 1)[real], full[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hypotheses_that_a_search_reorders_and_drops_are_decoded_as_whole_prefixes(sample, operators, dtype, monkeypatch):
    """The last word's logits, two beams a sentence, after orders with doubles and without a sentence that was finished."""
    monkeypatch.setattr(attention, "HISTORY_STEPS", 2)  # it grows on the way
    model = build("pre", compute_dtype=dtype).eval()
    orders = [[0, 1, 2, 3, 4, 5], [1, 1, 2, 3, 5, 4], [1, 0, 3, 3, 5, 4], [0, 0, 5, 4], [1, 0, 2, 2], [3, 2]]
    prefix, source, state = torch.full((6, 1), DICTIONARY.eos()), torch.tensor([0, 0, 1, 1, 2, 2]), {}
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        encoder_out = model.encoder.forward_torchscript(sample["net_input"])
        for order in map(torch.tensor, orders):
            prefix, source = prefix[order], source[order]
            model.decoder.reorder_incremental_state_scripting(state, order)
            memory = model.encoder.reorder_encoder_out(encoder_out, source)
            step = model.decoder(prefix, memory, incremental_state=state)[0][:, -1]
            torch.testing.assert_close(step, model.decoder(prefix, memory)[0][:, -1], rtol=1e-4, atol=BOUNDS[dtype])
            prefix = torch.cat([prefix, torch.randint(4, 100, (len(order), 1), generator=generator)], dim=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_of_the_source_that_the_caller_gives_take_the_place_of_those_before(sample, operators, dtype):
    """Fairseq's prev_attn_state in float32, with pads, into a state that has seen another source."""
    layer = build("pre", compute_dtype=dtype).eval().decoder.layers[0]
    x, source, other = (torch.randn(n, 5, 64, generator=torch.Generator().manual_seed(n)) for n in (1, 6, 4))
    pads = torch.arange(6)[None, :] >= torch.tensor([6, 5, 4, 3, 2])[:, None]
    with torch.no_grad():
        given = [
            projection(source).view(6, 5, 2, 32).permute(1, 2, 0, 3)
            for projection in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj)
        ]
        state = {}
        layer(x, encoder_out=other, incremental_state=state)
        layer.self_attn._set_input_buffer(state, {})
        again = layer(x, encoder_out=source, incremental_state=state, prev_attn_state=[*given, pads])[0]
        expected = layer(x, encoder_out=source, encoder_padding_mask=pads)[0]
        torch.testing.assert_close(again, expected, rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


def test_the_source_is_copied_only_where_other_sentences_take_its_rows(sample):
    """Two beams a sentence: beams that change places leave it as it is, a dropped sentence does not; against fairseq's copies."""
    encoder = build("pre").eval().encoder
    with torch.no_grad():
        original = encoder.forward_torchscript(sample["net_input"])
    two_beams = encoder.reorder_encoder_out(original, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert encoder.reorder_encoder_out(two_beams, torch.tensor([1, 1, 2, 3, 5, 4])) is two_beams
    dropped = encoder.reorder_encoder_out(two_beams, torch.tensor([1, 0, 5, 4]))
    assert encoder.reorder_encoder_out(dropped, torch.tensor([1, 1, 2, 3])) is dropped
    for name in ("encoder_out", "encoder_padding_mask"):
        rows = original[name][0].transpose(0, 1) if name == "encoder_out" else original[name][0]
        copied = dropped[name][0].transpose(0, 1) if name == "encoder_out" else dropped[name][0]
        assert torch.equal(copied, rows[[0, 0, 2, 2]])


def test_the_sources_keys_are_made_once_for_all_beams_and_stay_where_they_are(sample, operators):
    """Cross-attention's keys of 3 sentences with 2 beams; a search reorders and drops only the numbers of their sentences."""
    model = build("post").eval()
    source, state = torch.tensor([0, 0, 1, 1, 2, 2]), {}
    attend = model.decoder.layers[0].encoder_attn
    with torch.no_grad():
        encoder_out = model.encoder.forward_torchscript(sample["net_input"])
        expected = attend.k_proj(encoder_out["encoder_out"][0][:, :3]).flatten()
        pads = encoder_out["encoder_padding_mask"][0]
        for order in ([0, 1, 2, 3, 4, 5], [1, 0, 5, 5], [1, 2, 3]):
            source = source[order]
            model.decoder.reorder_incremental_state_scripting(state, torch.tensor(order))
            memory = model.encoder.reorder_encoder_out(encoder_out, source)
            model.decoder(torch.full((len(order), 1), 5), memory, incremental_state=state)
            keys = attend.get_incremental_state(state, "history")["keys"]
            torch.testing.assert_close(keys.flatten(), expected, rtol=1e-5, atol=1e-6)
            origin = attend._get_input_buffer(state)["origin"]
            assert torch.equal(origin, source[:, None].expand(-1, 9).masked_fill(pads[source], -1))


def test_the_sources_beams_are_looked_for_once_a_batch(sample, monkeypatch):
    """By the first layer: the others read the same encoder output."""
    model, looks = build("post").eval(), []
    monkeypatch.setattr(attention.math, "gcd", lambda *numbers: looks.append(numbers) or 1)
    with torch.no_grad():
        memory = model.encoder.forward_torchscript(sample["net_input"])
        state = {}
        for word in (1, 2):
            model.decoder(torch.full((5, word), 5), memory, incremental_state=state)
    assert len(looks) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_history_that_the_caller_gives_is_gone_on_with(sample, operators, dtype):
    """Fairseq's prev_self_attn_state: keys and values of the first words, in float32, as its layer has them."""
    layer = build("pre", compute_dtype=dtype).eval().decoder.layers[0]
    x = torch.randn(4, 5, 64, generator=torch.Generator().manual_seed(9))
    mask = torch.triu(torch.full((4, 4), float("-inf")), 1)
    with torch.no_grad():
        normed = layer.self_attn_layer_norm.enter(x[:3]).float()
        given = [
            projection(normed).view(3, 5, 2, 32).permute(1, 2, 0, 3)
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj)
        ]
        last = layer(x[3:], incremental_state={}, prev_self_attn_state=given)[0]
        torch.testing.assert_close(last, layer(x, self_attn_mask=mask)[0][3:], rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


@pytest.mark.parametrize(
    "given, sentence",
    [
        ("prev_self_attn_state", "keys and values of earlier words need an incremental state"),
        ("prev_attn_state", "keys and values of the source need an incremental state"),
    ],
)
def test_keys_and_values_without_an_incremental_state_are_refused(given, sentence):
    """As by fairseq: there is no place for them."""
    layer = build("pre").eval().decoder.layers[0]
    with pytest.raises(AssertionError, match=sentence):
        layer(torch.randn(1, 5, 64), torch.randn(3, 5, 64), **{given: [torch.randn(5, 2, 3, 32)] * 2})


def test_a_bool_attention_mask_forbids(sample):
    """As in fairseq's layer: the same as -inf added to the scores."""
    layer = build("pre").eval().encoder.layers[0]
    x = torch.randn(4, 5, 64, generator=torch.Generator().manual_seed(9))
    forbidden = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, None, forbidden), layer(x, None, forbidden.float()), rtol=1e-6, atol=1e-6)
        assert not torch.allclose(layer(x, None, forbidden), layer(x, None))


def test_a_decoder_told_of_its_beams_decodes_the_same(sample, operators):
    """Fairseq's set_beam_size: in stock it changes how the caches are reordered."""
    inputs, words, order = sample["net_input"], torch.tensor([[5, 6, 7]] * 10), torch.tensor([1, 0, 3, 2, 4, 5, 7, 6, 9, 8])

    def decoded(beam):
        model = build("pre").eval()
        model.decoder.set_beam_size(beam)
        with torch.no_grad():
            memory = model.encoder.forward_torchscript({name: inputs[name] for name in ("src_tokens", "src_lengths")})
            memory = model.encoder.reorder_encoder_out(memory, torch.arange(10) // 2)
            state = {}
            for length in (1, 2, 3):
                out = model.decoder(words[:, :length], memory, incremental_state=state)[0]
                model.decoder.reorder_incremental_state_scripting(state, order)
        return out

    torch.testing.assert_close(decoded(2), decoded(1))


class Logits(torch.nn.Module):
    """A model without its second result, which no trace can hold."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model(*inputs)[0]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("position", ["pre", "post"])
def test_a_traced_model_is_saved_and_computes_the_same(position, sample, tmp_path):
    """It holds torch's operators only, and the weights, for other sentences too."""
    model, inputs = build(position).eval(), tuple(sample["net_input"].values())
    with torch.no_grad():
        traced = torch.jit.trace(Logits(model), inputs, check_trace=False)
        traced.save(tmp_path / "model.pt")
        loaded = torch.jit.load(tmp_path / "model.pt")
        others = tuple(tensor[1:] for tensor in inputs)
        torch.testing.assert_close(loaded(*others), model(*others)[0], rtol=1e-5, atol=1e-5)


def test_retained_dropout_knows_fairseqs_names():
    """--retain-dropout-modules: the modules of fairseq's own transformer that a list names, and no others."""
    names = ["TransformerEncoder", "TransformerEncoderLayerBase", "TransformerDecoder", "TransformerDecoderLayerBase"]

    def retained(model, names):
        model.make_generation_fast_(retain_dropout=True, retain_dropout_modules=names)
        return {name for name, module in model.named_modules() if getattr(module, "apply_during_inference", False)}

    for some in (names, names[1:2], names[2:], ["MultiheadAttention"]):
        model = build("post")
        assert retained(model, some) == retained(stock_of(model), some) != set()


@pytest.mark.parametrize("position", ["pre", "post"])
def test_the_model_compiles_with_torchscript_and_computes_the_same(position, sample):
    """As far as fairseq's own transformer does."""
    model = build(position).eval()
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(**sample["net_input"])[0], model(**sample["net_input"])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position, final_norms", [("pre", 2), ("post", 0)])
def test_only_pre_ln_ends_each_stack_in_one_more_norm(position, final_norms):
    """Table 1: the final LN belongs to Pre-LN."""
    names = [name for name, _ in build(position).named_parameters() if name.endswith("r.layer_norm.weight")]
    assert len(names) == final_norms


def test_a_flag_that_contradicts_the_position_is_refused_in_one_sentence():
    """--encoder-normalize-before with Post-LN."""
    with pytest.raises(SystemExit, match="--encoder-normalize-before contradicts --ln-position post"):
        build("post", encoder_normalize_before=True)


@pytest.mark.skipif(fused.kernels is None, reason="the kernels were not built: no C++ compiler at set-up")
def test_training_draws_every_dropout_by_the_kernel(sample, monkeypatch):
    """Of embeddings, branches, activations and attention: torch's operator, many times slower on a CPU, is never called."""
    model = build("pre", dropout=0.3, attention_dropout=0.1, activation_dropout=0.1).train()
    monkeypatch.setattr(F, "dropout", None)
    model(**sample["net_input"])[0].sum().backward()


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [
    *("self_attn", "self_attn.out_proj", "self_attn.k_proj", "self_attn_layer_norm", "encoder_attn", "encoder_attn.q_proj"),
    *("encoder_attn.v_proj", "encoder_attn_layer_norm", "fc1", "fc2", "final_layer_norm"),
])  # fmt: skip
def test_a_hook_on_a_module_of_a_layer_sees_what_it_makes_and_changes_nothing(name, dtype, position, sample):
    """Statistics of activations, pruning and fairseq's detector of NaN rest on them."""
    model, seen = build(position, compute_dtype=dtype).eval(), []
    with torch.no_grad():
        expected = model(**sample["net_input"])[0]
        module = model.decoder.layers[1].get_submodule(name)
        handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        found = model(**sample["net_input"])[0]
        assert len(seen) == 1
        handle.remove()
        module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
        model(**sample["net_input"])
    torch.testing.assert_close(found, expected, rtol=BOUNDS[dtype], atol=BOUNDS[dtype])
    assert len(seen) == 2


def test_a_hook_on_a_decoder_layer_sees_the_attention_that_fairseqs_gives(sample):
    """Outside training: the mean over heads, of the last layer each head's. Pictures of attention are made of them."""
    model, seen = build("pre").eval(), []
    for layer in model.decoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    last = model(**sample["net_input"])[1]["attn"][0]
    assert [attention.shape for attention in seen] == [(5, 7, 9), (2, 5, 7, 9)]
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(5, 7))
    torch.testing.assert_close(seen[1].mean(0), last)


@pytest.mark.parametrize("flag", ["fp16", "bf16", "amp"])
def test_a_checkpoint_of_a_training_in_half_precision_is_loaded_for_products_in_bfloat16(flag):
    """Its settings, which have a _name, hold the flag; on a command line it is refused."""
    build("pre", compute_dtype="bfloat16", _name="transformer_ln_study", **{flag: True})
    with pytest.raises(SystemExit, match=f"--{flag} sets the type of every product"):
        build("pre", compute_dtype="bfloat16", **{flag: True})


def test_merged_embeddings_of_two_dictionaries_are_loaded_again():
    """--merge-src-tgt-embed: the decoder's table has more rows than its own dictionary."""

    def merged():
        task = Namespace(source_dictionary=Dictionary(), target_dictionary=Dictionary())
        for index in range(20):
            task.source_dictionary.add_symbol(f"s{index}")
            task.target_dictionary.add_symbol(f"t{index}")
        return build("pre", task, merge_src_tgt_embed=True)

    model, again = merged(), merged()
    model.decoder.embed_tokens.weight.data.fill_(0.5)
    again.load_state_dict(model.state_dict())
    assert again.decoder.embed_tokens.weight.eq(0.5).all() and len(again.decoder.embed_tokens.weight) == 44


@pytest.mark.parametrize("name", ["self_attn.out_proj", "fc1", "fc2", "final_layer_norm"])
@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_on_a_module_of_a_layer_is_called_once(register, name, sample):
    """As for statistics of gradients."""
    model, calls = build("pre"), []
    getattr(model.decoder.layers[1].get_submodule(name), register)(lambda *_: calls.append(1))
    model(**sample["net_input"])[0].sum().backward()
    assert len(calls) == 1


def test_dropout_of_a_module_ends_with_training_unless_it_is_retained():
    """As fairseq's: its rate within 4 standard errors, the identity in evaluation, --retain-dropout."""
    module, ones = Dropout(0.3), torch.ones(400, 512)
    torch.manual_seed(1)
    share = module.train()(ones).eq(0).float().mean()
    assert abs(share - 0.3) < 4 * (0.21 / ones.numel()) ** 0.5
    assert torch.equal(module.eval()(ones), ones)
    module.make_generation_fast_("", retain_dropout=True)
    assert module(ones).eq(0).any()


@pytest.mark.parametrize("mode", ["training", "evaluation", "retained"])
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("flag", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_rate_of_dropout_makes_a_layer_random_in_training_and_after_it_where_it_is_retained(flag, stack, mode):
    """Two passes over one input, the other two rates being 0."""
    model = build("pre", **{flag: 0.3}).train(mode == "training")
    if mode == "retained":
        model.make_generation_fast_(retain_dropout=True)
    layer = getattr(model, stack).layers[0]
    x, memory = torch.randn(2, 6, 5, 64, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        first, second = (layer(x, None) if stack == "encoder" else layer(x, memory)[0] for _ in range(2))
    assert torch.equal(first, second) == (mode == "evaluation")


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("training, rate", [(True, 0.3), (False, 0.0)])
def test_the_output_of_every_branch_is_dropped_at_the_rate_of_the_flag(training, rate, position, sample, monkeypatch):
    """Two sub-layers in each of two encoder layers, three in each of two decoder layers."""
    rates, add = [], fused.dropout_add
    monkeypatch.setattr(fused, "dropout_add", lambda x, y, p: rates.append(p) or add(x, y, p))
    build(position, dropout=0.3).train(training)(**sample["net_input"])
    assert rates == [rate] * 10


@pytest.mark.parametrize("training, rate", [(True, 0.3), (False, 0.0)])
def test_the_probabilities_of_every_attention_are_dropped_at_the_rate_of_the_flag(training, rate, sample, monkeypatch):
    """One in each of two encoder layers, two in each of two decoder layers."""
    rates, original = [], fused.attention

    def attend(q, k, v, pads, mask, p, *more):
        rates.append(p)
        return original(q, k, v, pads, mask, p, *more)

    monkeypatch.setattr(fused, "attention", attend)
    build("pre", attention_dropout=0.3).train(training)(**sample["net_input"])
    assert rates == [rate] * 6


@pytest.mark.parametrize("flag", ["dropout", "activation_dropout"])
def test_a_rate_of_dropout_is_that_of_the_flag(flag):
    """Embeddings of both stacks, and the FFN's activations of each layer."""
    model = build("pre", **{flag: 0.3})
    stacks = (model.encoder, model.decoder)
    modules = {"dropout": stacks, "activation_dropout": [layer for stack in stacks for layer in stack.layers]}[flag]
    assert [getattr(module, f"{flag}_module").p for module in modules] == [0.3] * len(modules)


@pytest.mark.parametrize("loaded", ["cfg", "args", None])
def test_training_on_alignments_has_the_attention_that_their_criterion_reads(loaded, sample):
    """--load-alignments: the mean over heads of the last layer's, as in evaluation; without the flag none is made.

    Older tasks, such as translation_multi_simple_epoch, have their flags in ``args`` and None in ``cfg``.
    """
    task = Namespace(**vars(TASK), **({"cfg": None} | {loaded: Namespace(load_alignments=True)} if loaded else {}))
    model = build("pre", task)
    trained, evaluated = (model.train(mode)(**sample["net_input"])[1]["attn"][0] for mode in (True, False))
    if loaded:
        torch.testing.assert_close(trained, evaluated, rtol=1e-5, atol=1e-6)
        assert trained.requires_grad and trained.is_contiguous()  # as fairseq's criterion wants it
    else:
        assert trained is None
