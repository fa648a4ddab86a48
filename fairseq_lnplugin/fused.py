"""The operators of the fast path. Each is one function: plain torch, or a C++ kernel of the same mathematics on CPU.

Products run in the *compute dtype* (float32 or bfloat16); the residual stream, LN, softmax and loss are float32. The kernels
(:mod:`csrc/kernels.cpp`) are optional: without a compiler :data:`kernels` is None and everything runs on torch operators, which
are also the kernels' oracle in the tests.
"""

import contextlib
import contextvars
import zlib
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def built_kernels():
    """The compiled kernels and "", or None and why: not built, built for another CPU, or from another version of their source."""
    try:
        from fairseq_lnplugin import _kernels
    except ImportError as error:
        return None, str(error).splitlines()[0]
    source = Path(__file__).with_name("csrc") / "kernels.cpp"
    if source.is_file() and getattr(_kernels, "source", None) != zlib.crc32(source.read_bytes() + torch.__version__.encode()):
        return None, (
            f"{_kernels.__file__} was built from another kernels.cpp or for another torch; `python setup.py build_ext --inplace` "
            f"in {source.parents[2]} builds them again"
        )
    return _kernels, ""


kernels, why_no_kernels = built_kernels()

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

#: Casts by type and parameters while no parameter changes, in this thread; None where one may.
kept_casts = contextvars.ContextVar("kept_casts", default=None)


@contextlib.contextmanager
def weights_at_rest():
    """Inside, no parameter changes, so that a cast is made once: a search asks for it at every word."""
    kept = kept_casts.get()
    outside = kept_casts.set({} if kept is None else kept)
    try:
        yield
    finally:
        kept_casts.reset(outside)


def cast(dtype, *weights):
    """The given weights, stacked along dimension 0, in ``dtype``."""
    kept = None if torch.is_grad_enabled() or torch.jit.is_tracing() else kept_casts.get()
    if kept is not None and not all(isinstance(weight, nn.Parameter) for weight in weights):
        kept = None  # what is worked out at each call (quantization, parametrizations) is another tensor each time
    key = (dtype, *map(id, weights))
    if kept is not None and key in kept:
        return kept[key]
    made = torch.cat([weight.to(dtype) for weight in weights]) if len(weights) > 1 else weights[0].to(dtype)
    if kept is not None:
        kept[key] = made
    return made


def has_hooks(module):
    """Whether anyone listens to a module: it is then called as torch's, so that its hooks see what it reads and makes."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def is_plain(module, base):
    """Whether calling a module is what the class ``base`` does, so that the fast path may take its place.

    It is not where someone listens to the module, or has put another in its place (low-rank adaptation, quantization).
    """
    return type(module).forward is base.forward and "forward" not in vars(module) and not has_hooks(module)


def linear(x: Tensor, dtype: torch.dtype, *modules) -> Tensor:
    """``x W^T + b`` in ``dtype`` for one or several ``nn.Linear``, whose outputs are concatenated along the last dimension.

    ``x``: ``(..., in_features)``; result ``(..., sum of out_features)`` in ``dtype`` (parameters keep theirs under fairseq's
    fp16 and bf16 flags, where it is the type of everything). Modules that are not plain are called, in their parameters' type.
    """
    if all(is_plain(module, nn.Linear) for module in modules):
        return product(x, dtype, [module.weight for module in modules], [module.bias for module in modules])
    own = [next(module.parameters(), x) for module in modules]
    outputs = [module(x.to(of.dtype)).to(compute_dtype_of(of, dtype)) for module, of in zip(modules, own, strict=True)]
    return torch.cat(outputs, dim=-1)


def product(x: Tensor, dtype: torch.dtype, weights, biases) -> Tensor:
    """As :func:`linear`, of weights ``(out_features, in_features)`` and as many biases ``(out_features)``, or None."""
    dtype = compute_dtype_of(weights[0], dtype)
    weight = cast(dtype, *weights)
    bias = None if biases[0] is None else cast(dtype, *biases)
    # rows of one product: torch would make a product for each sentence of a transposed x, with a copy of the weight for each
    rows = x.reshape(-1, x.size(-1)).to(dtype)
    return F.linear(rows, weight, bias).view(x.shape[:-1] + (weight.size(0),))


def compute_dtype_of(weight, dtype):
    """The dtype products with ``weight`` run in: a model turned to half precision as a whole stays in it."""
    return dtype if weight.dtype == torch.float32 and not under_autocast(weight.device.type) else weight.dtype


def under_autocast(device_type):
    """Whether torch chooses the types of products; some devices, such as ``meta``, have no such thing."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def has_kernels():
    """Whether C++ kernels are there and can run: what is traced or compiled has to be torch's own operators."""
    return kernels is not None and not torch.jit.is_tracing() and not torch.compiler.is_compiling()


def on_kernels(*tensors):
    """Whether a C++ kernel takes these: all on the CPU, the first in float32, no autocast around."""
    return (
        has_kernels()
        and tensors[0].dtype == torch.float32
        and all(tensor.device.type == "cpu" for tensor in tensors)
        and not under_autocast("cpu")
    )


def kernel_seed():
    """A seed for one call of dropout, drawn from torch's generator: torch.manual_seed reproduces it."""
    return int(torch.randint(2**62, ()))


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, dtype):
        x = x.contiguous()
        out, statistics = kernels.layer_norm(x, weight, bias, eps, dtype)
        ctx.save_for_backward(x, weight, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, statistics = ctx.saved_tensors
        return (*kernels.layer_norm_backward(grad.contiguous(), x, statistics, weight), None, None)


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, p):
        ctx.y_dtype, ctx.p, ctx.seed = y.dtype, p, kernel_seed()
        return kernels.dropout_add(x.contiguous(), y.contiguous(), p, ctx.seed)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad, kernels.dropout_backward(grad.contiguous(), ctx.y_dtype, ctx.p, ctx.seed), None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, p, dtype):
        ctx.p, ctx.seed = p, kernel_seed()
        # dropout is linear and diagonal, so the kernel of its gradient is its own
        return kernels.dropout_backward(y.contiguous(), dtype, p, ctx.seed)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return kernels.dropout_backward(grad.float().contiguous(), torch.float32, ctx.p, ctx.seed), None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, key_padding_mask, attn_mask):
        ctx.save_for_backward(q, k, v, key_padding_mask, attn_mask)
        return kernels.attention(q, k, v, key_padding_mask, attn_mask)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, key_padding_mask, attn_mask = ctx.saved_tensors
        grads = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in (q, k, v)]
        kernels.attention_backward(grad.contiguous(), q, k, v, key_padding_mask, attn_mask, *grads)
        return (*grads, None, None)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LN over the last dimension, computed in x's dtype, returned in the compute dtype of ``weight``."""
    if torch.jit.is_scripting():
        return F.layer_norm(x, (x.size(-1),), weight, bias, eps)
    else:
        dtype = compute_dtype_of(weight, dtype)
        if on_kernels(x, weight):
            return _LayerNorm.apply(x, weight, bias, eps, dtype)
        return F.layer_norm(x, (x.size(-1),), weight, bias, eps).to(dtype)


def dropout(y: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """``dropout_p(y)``, worked out in y's dtype, returned in ``dtype``."""
    if torch.jit.is_scripting():
        return F.dropout(y, p, p > 0).to(dtype)
    else:
        if p > 0 and on_kernels(y):
            return _Dropout.apply(y, p, dtype)
        return F.dropout(y, p, p > 0).to(dtype)


def dropout_add(x: Tensor, y: Tensor, p: float) -> Tensor:
    """``x + dropout_p(y)`` in x's dtype."""
    if torch.jit.is_scripting():
        return x + F.dropout(y, p, p > 0)
    else:
        if p > 0 and on_kernels(x, y):
            return _DropoutAdd.apply(x, y, p)
        return x + F.dropout(y, p, p > 0)


def history_attention(q, keys, values, origin, attn_mask=None, p=0.0, need_weights=False):
    """:func:`attention` of the words of hypotheses to steps that are kept once and shared between hypotheses.

    ``q``: ``(tgt_len, batch, heads, head_dim)``; ``keys``, ``values``: ``(steps, rows, heads, head_dim)``; ``origin``:
    ``(batch, steps)``, the row that holds a step of a hypothesis; -1 where it is a pad. Returns what :func:`attention` does, the
    probabilities as ``(heads, batch, tgt_len, steps)``.
    """
    # one word a row, as in decoding, and no gradient wanted
    if takes_attention(q) and q.size(0) == 1 and attn_mask is None and p == 0 and not torch.is_grad_enabled():
        out, weights = kernels.history_attention(q, keys, values, origin.contiguous(), need_weights)
        return out.flatten(2), weights
    steps = torch.arange(keys.size(0), device=origin.device)
    k, v = (rows[steps[:, None], origin.t().clamp(min=0)] for rows in (keys, values))
    pads = origin < 0
    return attention(q, k, v, pads if pads.any() else None, attn_mask, p, need_weights)


def takes_attention(q):
    """Whether there are kernels of attention for ``q``."""
    return has_kernels() and q.device.type == "cpu" and q.dtype in COMPUTE_DTYPES.values()


def attention(q, k, v, key_padding_mask=None, attn_mask=None, p=0.0, need_weights=False):
    """Multi-head scaled dot-product attention between the projections.

    ``q``: ``(tgt_len, batch, heads, head_dim)``; ``k``, ``v``: ``(src_len, batch, heads, head_dim)``; ``key_padding_mask``: bool
    ``(batch, src_len)``, True at pads; ``attn_mask``: ``(tgt_len, src_len)``, added to the scores; ``p``: the rate of dropout on
    the probabilities. Returns ``(tgt_len, batch, heads * head_dim)`` in q's dtype and, if asked for, the probabilities
    ``(heads, batch, tgt_len, src_len)``.
    """
    on_kernel = takes_attention(q)
    if on_kernel and p == 0 and not need_weights:
        mask = None if attn_mask is None else attn_mask.float().contiguous()
        pads = None if key_padding_mask is None else key_padding_mask.contiguous()
        return _Attention.apply(q, k, v, pads, mask).flatten(2), None
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    mask = None if attn_mask is None else attn_mask.to(q.dtype)
    if key_padding_mask is not None:
        pads = torch.zeros(key_padding_mask.shape, dtype=q.dtype, device=q.device).masked_fill_(key_padding_mask, float("-inf"))
        pads = pads[:, None, None, :]
        mask = pads if mask is None else mask + pads
    weights = None
    if need_weights or (on_kernel and p > 0):  # torch's attention takes its dropout from a generator of one thread
        scores = (q * q.size(-1) ** -0.5) @ k.transpose(-1, -2)
        if mask is None:
            probs = F.softmax(scores, dim=-1, dtype=torch.float32)
        else:  # a query that may attend to nothing gets zeros, as from torch's attention
            nothing = (mask == float("-inf")).all(dim=-1, keepdim=True)
            probs = F.softmax((scores + mask).masked_fill(nothing, 0.0), dim=-1, dtype=torch.float32).masked_fill(nothing, 0.0)
        out = dropout(probs, p, v.dtype) @ v
        if need_weights:
            weights = probs.transpose(0, 1)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    return out.permute(2, 0, 1, 3).flatten(2), weights


def best_types(logits: Tensor, specials: int, count: int):
    """Log-probabilities of the first ``specials`` types and of the ``count`` best others of each row, and which types they are.

    ``logits``: ``(rows, vocab)``; both results are ``(rows, specials + count)``, the first one float32, and the
    others go from the best on.
    """
    logits = logits.float()
    if on_kernels(logits):
        return kernels.best_types(logits.contiguous(), specials, count)
    lprobs = torch.log_softmax(logits, dim=-1)
    best, types = lprobs[:, specials:].topk(count)
    first = torch.arange(specials, device=logits.device).expand(len(logits), -1)
    return torch.cat([lprobs[:, :specials], best], dim=1), torch.cat([first, types + specials], dim=1)


#: Rows of logits made at a time: 512 x 10,000 types in float32 are 20 MB, which stay in a CPU's last-level cache.
LOGIT_ROWS = 512


class _LabelSmoothedNLL(torch.autograd.Function):
    """Loss and its gradients, block by block of rows; the gradients are made in the forward pass and scaled in the backward.

    They are kept in float32 until then. Of float16 logits they are worked out in it too: fairseq multiplies the loss by its scale
    after this, so that float16 would have lost the small ones.
    """

    @staticmethod
    def forward(ctx, features, weight, target, epsilon, dtype, needs_grad):
        vocab = weight.size(0)
        smooth = epsilon / (vocab - 1)
        x, w = features.to(dtype), cast(dtype, weight)
        loss = torch.empty(target.numel(), device=x.device)
        nll = torch.empty_like(loss)
        grad_x = torch.empty(features.shape, device=x.device) if needs_grad else None
        grad_w = torch.zeros(weight.shape, device=x.device) if needs_grad else None
        for start in range(0, target.numel(), LOGIT_ROWS):
            block = slice(start, start + LOGIT_ROWS)
            logits = x[block] @ w.t()
            loss[block], nll[block], grad = label_smoothed_rows(logits, target[block], epsilon, smooth, needs_grad)
            if needs_grad:
                take = torch.float32 if logits.dtype == torch.float16 else logits.dtype
                with torch.autocast(x.device.type, enabled=False) if under_autocast(x.device.type) else contextlib.nullcontext():
                    grad, rows = grad.to(take), x[block].to(take)
                    grad_x[block] = (grad @ w.to(take)).float()
                    if take == grad_w.dtype:
                        grad_w.addmm_(grad.t(), rows)  # in place, but of one type only
                    else:
                        grad_w += grad.t() @ rows
        ctx.save_for_backward(grad_x, grad_w)
        ctx.dtypes = features.dtype, weight.dtype
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _):
        # every criterion of fairseq sums the rows, so that all entries are one number (the loss scale under fp16)
        if grad_loss.numel() > 1 and grad_loss.stride(0) != 0 and not (grad_loss == grad_loss[0]).all():
            raise RuntimeError("the losses of label_smoothed_nll can be summed or averaged, and not weighted row by row")
        scale = grad_loss[0] if grad_loss.numel() else grad_loss.new_ones(())
        grads = [(grad * scale).to(dtype) for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return (*grads, None, None, None, None)


def label_smoothed_rows(logits, target, epsilon, smooth, needs_grad):
    """Loss, negative log-likelihood ``(rows,)`` and, if asked for, the loss's float32 gradient at ``(rows, vocab)``."""
    grad = logits.float()
    if on_kernels(grad, target):
        loss, nll = kernels.label_smoothed_rows(grad, target, epsilon, smooth)
        return loss, nll, grad if needs_grad else None
    lprobs = torch.log_softmax(grad, dim=-1)
    nll = -lprobs.gather(1, target[:, None]).squeeze(1)
    loss = (1 - epsilon - smooth) * nll - smooth * lprobs.sum(dim=-1)
    if not needs_grad:
        return loss, nll, None
    # d loss / d z_v = p_v (the weights of all log p sum to 1) - smooth - [v = y] (1 - epsilon - smooth)
    grad = lprobs.exp_().sub_(smooth)
    grad.scatter_add_(1, target[:, None], grad.new_full((target.numel(), 1), -(1 - epsilon - smooth)))
    return loss, nll, grad


def label_smoothed_nll(features, weight, target, epsilon, dtype):
    """Fairseq's label smoothed loss and negative log-likelihood, in nats, a row each.

    ``features``: ``(rows, embed_dim)``, ``weight``: ``(vocab, embed_dim)``, ``target``: ``(rows,)``. The rows' losses are to be
    summed: their gradient is one number for all rows.

    Raises:
        RuntimeError: in the backward pass, where the rows are weighted.

    """
    needs_grad = torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad)
    return _LabelSmoothedNLL.apply(features, weight, target, epsilon, compute_dtype_of(weight, dtype), needs_grad)
