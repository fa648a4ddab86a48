// CPU kernels of the fast path: attention over short sentences and to a search's history, LN, dropout with its residual, the
// label smoothed loss, the best types of a row. Each computes what the torch operators beside it in fused.py compute; those are
// its oracle. Tensors are float or bfloat16, arithmetic is float throughout.
#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;

// Floats in a vector register. Compilers split wider vectors, but badly: shuffles and reductions go through memory.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

typedef uint32_t UVec __attribute__((vector_size(kLanes * sizeof(uint32_t)), aligned(4)));
typedef int32_t IVec __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4)));
typedef uint16_t HVec __attribute__((vector_size(kLanes * sizeof(uint16_t)), aligned(2)));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
// bfloat16 is the upper half of a float; it is rounded to the nearest, ties to even, and NaN stays NaN
inline Vec load(const at::BFloat16* p) {
  return (Vec)(__builtin_convertvector(*reinterpret_cast<const HVec*>(p), UVec) << 16);
}
inline void store(at::BFloat16* p, Vec v) {
  const UVec bits = (UVec)v, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *reinterpret_cast<HVec*>(p) = __builtin_convertvector(v == v ? rounded : (bits >> 16) | 0x40u, HVec);
}
inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// ---------------------------------------------------------------------------------------------------------------- dropout
// Element i of a call is kept if 16 bits hashed from (i, seed) are at least p * 2^16. Nothing is stored: the backward pass hashes
// again. The seed comes from torch's generator, so torch.manual_seed reproduces it, whatever the number of threads.

struct Dropout {
  uint32_t low, high, threshold;
  float scale;

  Dropout(double p, uint64_t seed)
      : low(static_cast<uint32_t>(seed)),
        high(static_cast<uint32_t>(seed >> 32)),
        threshold(static_cast<uint32_t>(std::lround(p * 65536))),
        // the rate in force is threshold / 2^16, and the scale belongs to it: the mean is exact
        scale(threshold >= 65536 ? 0.f : 65536.f / (65536.f - threshold)) {}

  static UVec mix(UVec x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
  }

  // factors, 0 or scale, of elements `at`... and kHalf + `at`... of one block: from the lower and the upper halves of the hashes
  void factors(uint32_t block, int at, Vec& first, Vec& second) const {
    UVec lane;
    for (int j = 0; j < kLanes; ++j) lane[j] = at + j;
    const UVec h = mix(mix((block * kHalf + lane) ^ low) + high);
    const Vec kept = Vec{} + scale;
    first = (h & 0xffffu) >= threshold ? kept : Vec{};
    second = (h >> 16) >= threshold ? kept : Vec{};
  }

  static constexpr int kHalf = 16, kBlock = 2 * kHalf;  // of any machine: a seed gives one mask, however wide vectors are
};

// out[i] = factor_i y[i] + x[i] (x may be null) for the n elements of one row; every row starts with a new block
template <typename Y, typename Out>
inline void dropout_row(const Dropout& dropout, int64_t row, int64_t n, const Y* y, const float* x, Out* out) {
  constexpr int kHalf = Dropout::kHalf, kBlock = Dropout::kBlock;
  uint32_t block = static_cast<uint32_t>(row) * static_cast<uint32_t>((n + kBlock - 1) / kBlock);
  Vec first, second;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock, ++block)
    for (int at = 0; at < kHalf; at += kLanes) {
      dropout.factors(block, at, first, second);
      const int64_t j = i + at;
      Vec a = first * load(y + j), b = second * load(y + j + kHalf);
      if (x) {
        a += load(x + j);
        b += load(x + j + kHalf);
      }
      store(out + j, a);
      store(out + j + kHalf, b);
    }
  if (i < n) {
    float factors[kBlock];
    for (int at = 0; at < kHalf; at += kLanes) {
      dropout.factors(block, at, first, second);
      store(factors + at, first);
      store(factors + kHalf + at, second);
    }
    for (int64_t j = 0; i + j < n; ++j)
      out[i + j] = static_cast<Out>(factors[j] * static_cast<float>(y[i + j]) + (x ? x[i + j] : 0.f));
  }
}

// rows of the last dimension; none of a tensor without elements
inline int64_t rows_of(const Tensor& x) { return x.numel() ? x.numel() / x.size(-1) : 0; }

template <typename F>
void parallel_rows(int64_t rows, int64_t width, F f) {
  if (rows) at::parallel_for(0, rows, std::max<int64_t>(1, 32768 / width), f);
}

template <typename Y, typename Out>
void dropout_rows(const Y* y, const float* x, Out* out, int64_t rows, int64_t n, const Dropout& dropout) {
  parallel_rows(rows, n, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) dropout_row(dropout, r, n, y + r * n, x ? x + r * n : nullptr, out + r * n);
  });
}

#define FLOAT_OR_BFLOAT16(tensor, ...)               \
  if ((tensor).scalar_type() == at::kFloat) {        \
    using scalar = float;                            \
    __VA_ARGS__                                      \
  } else {                                           \
    TORCH_CHECK((tensor).scalar_type() == at::kBFloat16, "float or bfloat16 expected"); \
    using scalar = at::BFloat16;                     \
    __VA_ARGS__                                      \
  }

Tensor dropout_add(const Tensor& x, const Tensor& y, double p, int64_t seed) {
  TORCH_CHECK(x.sizes() == y.sizes() && x.is_contiguous() && y.is_contiguous(), "two tensors of one shape, without gaps, expected");
  const int64_t n = x.size(-1), rows = rows_of(x);
  Tensor out = at::empty_like(x);
  const Dropout dropout(p, seed);
  FLOAT_OR_BFLOAT16(y, dropout_rows(y.const_data_ptr<scalar>(), x.const_data_ptr<float>(), out.data_ptr<float>(), rows, n, dropout);)
  return out;
}

Tensor dropout_backward(const Tensor& grad, at::ScalarType dtype, double p, int64_t seed) {
  TORCH_CHECK(grad.is_contiguous(), "a tensor without gaps expected");
  const int64_t n = grad.size(-1), rows = rows_of(grad);
  Tensor out = at::empty(grad.sizes(), grad.options().dtype(dtype));
  const Dropout dropout(p, seed);
  FLOAT_OR_BFLOAT16(out, dropout_rows(grad.const_data_ptr<float>(), static_cast<const float*>(nullptr), out.data_ptr<scalar>(), rows, n, dropout);)
  return out;
}

// --------------------------------------------------------------------------------------------------------------------- LN
// Rows of x are normalized to `out`, given in out's type; mean and 1 / standard deviation go to `statistics` (rows, 2).

template <typename T>
void layer_norm_rows(const float* x, const float* weight, const float* bias, float eps, T* out, float* statistics, int64_t rows,
                     int64_t n) {
  parallel_rows(rows, n, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * n;
      float sum = 0.f, squares = 0.f;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < n; ++i) sum += xr[i];
      const float mean = sum / n;
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < n; ++i) squares += (xr[i] - mean) * (xr[i] - mean);
      const float rstd = 1.f / std::sqrt(squares / n + eps);
      T* o = out + r * n;
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes) store(o + i, (load(xr + i) - mean) * rstd * load(weight + i) + load(bias + i));
      for (; i < n; ++i) o[i] = static_cast<T>((xr[i] - mean) * rstd * weight[i] + bias[i]);
      statistics[2 * r] = mean;
      statistics[2 * r + 1] = rstd;
    }
  });
}

// returns (LN(x) in dtype, statistics)
std::tuple<Tensor, Tensor> layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, at::ScalarType dtype) {
  const int64_t n = x.size(-1), rows = rows_of(x);
  TORCH_CHECK(x.is_contiguous() && weight.numel() == n && bias.numel() == n, "rows without gaps, as wide as weight and bias, expected");
  Tensor out = at::empty(x.sizes(), x.options().dtype(dtype)), statistics = at::empty({rows, 2}, x.options());
  FLOAT_OR_BFLOAT16(out, layer_norm_rows(x.const_data_ptr<float>(), weight.const_data_ptr<float>(), bias.const_data_ptr<float>(),
                                         static_cast<float>(eps), out.data_ptr<scalar>(), statistics.data_ptr<float>(), rows, n);)
  return {out, statistics};
}

template <typename T>
void layer_norm_backward_rows(const T* grad, const float* x, const float* statistics, const float* weight, float* grad_x,
                              float* grad_weight, float* grad_bias, int64_t begin, int64_t end, int64_t n) {
  for (int64_t r = begin; r < end; ++r) {
    const T* g = grad + r * n;
    const float* xr = x + r * n;
    float* o = grad_x + r * n;
    const float mean = statistics[2 * r], rstd = statistics[2 * r + 1];
    float sum = 0.f, dot = 0.f;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t i = 0; i < n; ++i) {
      const float gi = static_cast<float>(g[i]), normed = (xr[i] - mean) * rstd;
      grad_weight[i] += gi * normed;
      grad_bias[i] += gi;
      sum += gi * weight[i];
      dot += gi * weight[i] * normed;
    }
    sum /= n;
    dot /= n;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i)
      o[i] = rstd * (static_cast<float>(g[i]) * weight[i] - sum - (xr[i] - mean) * rstd * dot);
  }
}

// gradients at x (float), weight and bias
std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& statistics,
                                                       const Tensor& weight) {
  const int64_t n = x.size(-1), rows = rows_of(x);
  TORCH_CHECK(grad.sizes() == x.sizes() && grad.is_contiguous() && x.is_contiguous() && weight.numel() == n && statistics.numel() == 2 * rows,
              "a gradient of the shape of x, without gaps, expected");
  // one partial sum a fixed slice of rows, so that the result does not depend on how threads share the work
  const int64_t slices = std::min<int64_t>(rows, 16), slice = (rows + slices - 1) / std::max<int64_t>(slices, 1);
  Tensor grad_x = at::empty_like(x), partial = at::zeros({2, slices, n}, x.options());
  float* sums = partial.data_ptr<float>();
  FLOAT_OR_BFLOAT16(grad, {
    const scalar* g = grad.const_data_ptr<scalar>();
    const float *xs = x.const_data_ptr<float>(), *st = statistics.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
    float* gx = grad_x.data_ptr<float>();
    at::parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s)
        layer_norm_backward_rows(g, xs, st, w, gx, sums + s * n, sums + (slices + s) * n, s * slice, std::min(rows, (s + 1) * slice), n);
    });
  })
  Tensor total = partial.sum(1);
  return {grad_x, total[0], total[1]};
}

// -------------------------------------------------------------------------------------------------------------- attention
// One sentence and head at a time, everything of it in cache. Sizes are those of translation: tens of words, head_dim 32 to 128.

// C (rows x cols) = A (rows x inner) B (inner x cols); A has any strides; cols is a multiple of kLanes; B and C are row-major
template <int R, int V>
inline void product_block(int64_t inner, const float* a, int64_t row_stride, int64_t inner_stride, const float* b, int64_t ldb, float* c,
                          int64_t ldc) {
  Vec sum[R][V] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vec row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + k * ldb + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const float s = a[r * row_stride + k * inner_stride];
      for (int v = 0; v < V; ++v) sum[r][v] += s * row[v];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(c + r * ldc + v * kLanes, sum[r][v]);
}

// Rows and vectors of a block, whose sums stay in registers: of 32 registers with AVX-512, of 16 elsewhere
constexpr int kRows = kLanes == 16 ? 4 : 6, kColumns = kLanes == 16 ? 4 : 2;

template <int V, int R = kRows>
inline void product_columns(int64_t rows, int64_t inner, const float* a, int64_t row_stride, int64_t inner_stride, const float* b,
                            int64_t ldb, float* c, int64_t ldc) {
  int64_t r = 0;
  for (; r + R <= rows; r += R) product_block<R, V>(inner, a + r * row_stride, row_stride, inner_stride, b, ldb, c + r * ldc, ldc);
  if constexpr (R > 1)
    if (r < rows) product_columns<V, R - 1>(rows - r, inner, a + r * row_stride, row_stride, inner_stride, b, ldb, c + r * ldc, ldc);
}

void product(int64_t rows, int64_t cols, int64_t inner, const float* a, int64_t row_stride, int64_t inner_stride, const float* b,
             int64_t ldb, float* c, int64_t ldc) {
  int64_t j = 0;
  for (; j + kColumns * kLanes <= cols; j += kColumns * kLanes)
    product_columns<kColumns>(rows, inner, a, row_stride, inner_stride, b + j, ldb, c + j, ldc);
  if constexpr (kColumns > 2)
    for (; j + 2 * kLanes <= cols; j += 2 * kLanes) product_columns<2>(rows, inner, a, row_stride, inner_stride, b + j, ldb, c + j, ldc);
  for (; j < cols; j += kLanes) product_columns<1>(rows, inner, a, row_stride, inner_stride, b + j, ldb, c + j, ldc);
}

constexpr float kInfinity = std::numeric_limits<float>::infinity(), kLowest = std::numeric_limits<float>::lowest();

// e^x for x <= 0, relative error below 4e-7: 2^n times a polynomial on [-ln2/2, ln2/2]; 0 below e^-86
inline Vec exp_nonpositive(Vec x) {
  const Vec cut = x < -86.f ? Vec{} - 86.f : x;
  const IVec n = __builtin_convertvector(cut * 1.44269504f - 0.5f, IVec);  // truncation rounds these to the nearest
  const Vec whole = __builtin_convertvector(n, Vec), r = (cut - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vec y = r * 1.9875691e-4f + 1.3981999e-3f;
  y = y * r + 8.3334519e-3f;
  y = y * r + 4.1665796e-2f;
  y = y * r + 1.6666666e-1f;
  y = y * r + 0.5f;
  y = y * r * r + r + 1.f;
  return x < -86.f ? Vec{} : y * (Vec)((n + 127) << 23);
}

inline float sum_of(Vec v) {
  float sum = 0.f;
  for (int l = 0; l < kLanes; ++l) sum += v[l];
  return sum;
}

inline float max_of(Vec v) {
  float top = v[0];
  for (int l = 1; l < kLanes; ++l) top = std::max(top, v[l]);
  return top;
}

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// m becomes its transpose: swap the off-diagonal halves, then those of each half, ...
template <int W>
inline void transpose_square(Vec* m) {
  IVec lane, upper, lower;
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
  upper = (lane & W) == 0 ? lane : lane - W + kLanes;
  lower = (lane & W) == 0 ? lane + W : lane + kLanes;
  for (int i = 0; i < kLanes; ++i)
    if ((i & W) == 0) {
      const Vec a = m[i], b = m[i + W];
      m[i] = __builtin_shuffle(a, b, upper);
      m[i + W] = __builtin_shuffle(a, b, lower);
    }
  if constexpr (W > 1) transpose_square<W / 2>(m);
}

// Where one operand (len, batch, heads, head_dim) lies in memory: any strides but the last, which is 1
struct Layout {
  int64_t len_stride, batch_stride, head_stride;
  explicit Layout(const Tensor& t) : len_stride(t.stride(0)), batch_stride(t.stride(1)), head_stride(t.stride(2)) {
    TORCH_CHECK(t.dim() == 4 && (t.stride(3) == 1 || t.size(3) == 1), "operands are (len, batch, heads, head_dim), head_dim without gaps");
  }
};

struct Shape {
  int64_t tgt_len, src_len, batch, heads, head_dim, dim, src;  // dim, src: padded head_dim and src_len
  Shape(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& pads, const std::optional<Tensor>& attn_mask)
      : tgt_len(q.size(0)), src_len(k.size(0)), batch(q.size(1)), heads(q.size(2)), head_dim(q.size(3)), dim(padded(q.size(3))),
        src(padded(k.size(0))) {
    TORCH_CHECK(k.size(1) == batch && k.size(2) == heads && k.size(3) == head_dim && k.sizes() == v.sizes(),
                "keys and values of one shape, with the rows, heads and head_dim of the queries, expected");
    TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), "one type of q, k and v expected");
    TORCH_CHECK(!pads || (pads->sizes() == at::IntArrayRef{batch, src_len} && pads->is_contiguous()),
                "a mask of pads (batch, src_len), without gaps, expected");
    TORCH_CHECK(!attn_mask || (attn_mask->sizes() == at::IntArrayRef{tgt_len, src_len} && attn_mask->is_contiguous()),
                "an attention mask (tgt_len, src_len), without gaps, expected");
  }
};

// n scaled elements of one row
template <typename From, typename To>
inline void copy_scaled(const From* from, To* to, int64_t n, float scale) {
  int64_t d = 0;
  for (; d + kLanes <= n; d += kLanes) store(to + d, scale * load(from + d));
  for (; d < n; ++d) to[d] = static_cast<To>(scale * static_cast<float>(from[d]));
}

template <typename T>
void read_rows(const T* p, const Layout& at, const Shape& s, int64_t len, int64_t b, int64_t h, float scale, float* out) {
  for (int64_t t = 0; t < len; ++t)
    copy_scaled(p + t * at.len_stride + b * at.batch_stride + h * at.head_stride, out + t * s.dim, s.head_dim, scale);
}

template <typename T>
void write_rows(const float* from, const Shape& s, int64_t len, int64_t b, int64_t h, float scale, T* p, const Layout& at) {
  for (int64_t t = 0; t < len; ++t)
    copy_scaled(from + t * s.dim, p + t * at.len_stride + b * at.batch_stride + h * at.head_stride, s.head_dim, scale);
}

void transpose(const float* from, const Shape& s, float* to) {  // (src, dim) to (dim, src)
  Vec square[kLanes];
  for (int64_t j = 0; j < s.src; j += kLanes)
    for (int64_t d = 0; d < s.dim; d += kLanes) {
      for (int l = 0; l < kLanes; ++l) square[l] = load(from + (j + l) * s.dim + d);
      transpose_square<kLanes / 2>(square);
      for (int l = 0; l < kLanes; ++l) store(to + (d + l) * s.src + j, square[l]);
    }
}

// What is added to the scores: attn_mask (or 0) with -inf in the padded columns, (tgt_len, src)
std::vector<float> padded_mask(const Shape& s, const std::optional<Tensor>& attn_mask) {
  std::vector<float> mask(s.tgt_len * s.src, -kInfinity);
  const float* from = attn_mask ? attn_mask->const_data_ptr<float>() : nullptr;
  for (int64_t t = 0; t < s.tgt_len; ++t)
    for (int64_t j = 0; j < s.src_len; ++j) mask[t * s.src + j] = from ? from[t * s.src_len + j] : 0.f;
  return mask;
}

// The same of one sentence's pads, (src): pads may be null
void padded_pads(const Shape& s, const bool* pads, float* out) {
  for (int64_t j = 0; j < s.src_len; ++j) out[j] = pads && pads[j] ? -kInfinity : 0.f;
}

// 1 / sum, and 0 where nothing may be attended to, as torch's attention has it; NaN stays NaN by what it is multiplied with
inline float share_of(float sum) { return sum > 0.f ? 1.f / sum : 0.f; }

// softmax(q k^T + masks) of one sentence and head; q is scaled already
void probabilities(const Shape& s, const float* q, const float* k_transposed, const float* mask, const float* pads, float* probs) {
  product(s.tgt_len, s.src, s.head_dim, q, s.dim, 1, k_transposed, s.src, probs, s.src);
  for (int64_t r = 0; r < s.tgt_len; ++r) {
    float* p = probs + r * s.src;
    const float* m = mask + r * s.src;
    Vec tops = Vec{} + kLowest, sums = {};
    for (int64_t j = 0; j < s.src; j += kLanes) {
      const Vec score = load(p + j) + load(m + j) + load(pads + j);
      store(p + j, score);
      tops = max(tops, score);
    }
    const float top = max_of(tops);
    for (int64_t j = 0; j < s.src; j += kLanes) {
      const Vec e = exp_nonpositive(load(p + j) - top);
      store(p + j, e);
      sums += e;
    }
    const float scale = share_of(sum_of(sums));
    for (int64_t j = 0; j < s.src; j += kLanes) store(p + j, load(p + j) * scale);
  }
}

// gradient at the scores, in place: P (slope - its mean under P)
void softmax_backward(const Shape& s, const float* probs, float* slopes) {
  for (int64_t r = 0; r < s.tgt_len; ++r) {
    float* slope = slopes + r * s.src;
    const float* p = probs + r * s.src;
    Vec means = {};
    for (int64_t j = 0; j < s.src; j += kLanes) means += load(slope + j) * load(p + j);
    const float mean = sum_of(means);
    for (int64_t j = 0; j < s.src; j += kLanes) store(slope + j, load(p + j) * (load(slope + j) - mean));
  }
}

const bool* row_or_null(const std::optional<Tensor>& t, int64_t row) { return t ? t->const_data_ptr<bool>() + row * t->size(1) : nullptr; }

// Sentences and heads are independent: one task each
template <typename F>
void for_each_head(const Shape& s, F f) {
  at::parallel_for(0, s.batch * s.heads, 4, [&](int64_t begin, int64_t end) { f(begin, end); });
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& pads,
                 const std::optional<Tensor>& attn_mask) {
  const Shape s(q, k, v, pads, attn_mask);
  const Layout at_q(q), at_k(k), at_v(v);
  Tensor out = at::empty(q.sizes(), q.options());
  const Layout at_out(out);
  const float scale = 1.f / std::sqrt(static_cast<float>(s.head_dim));
  const std::vector<float> mask = padded_mask(s, attn_mask);
  FLOAT_OR_BFLOAT16(q, {
    const scalar *qp = q.const_data_ptr<scalar>(), *kp = k.const_data_ptr<scalar>(), *vp = v.const_data_ptr<scalar>();
    scalar* op = out.data_ptr<scalar>();
    for_each_head(s, [&](int64_t begin, int64_t end) {
      std::vector<float> qs(s.tgt_len * s.dim), ks(s.src * s.dim), kt(s.dim * s.src), vs(s.src * s.dim), probs(s.tgt_len * s.src),
          result(s.tgt_len * s.dim), at_pads(s.src);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / s.heads, h = i % s.heads;
        read_rows(qp, at_q, s, s.tgt_len, b, h, scale, qs.data());
        read_rows(kp, at_k, s, s.src_len, b, h, 1.f, ks.data());
        read_rows(vp, at_v, s, s.src_len, b, h, 1.f, vs.data());
        padded_pads(s, row_or_null(pads, b), at_pads.data());
        transpose(ks.data(), s, kt.data());
        probabilities(s, qs.data(), kt.data(), mask.data(), at_pads.data(), probs.data());
        product(s.tgt_len, s.dim, s.src_len, probs.data(), s.src, 1, vs.data(), s.dim, result.data(), s.dim);
        write_rows(result.data(), s, s.tgt_len, b, h, 1.f, op, at_out);
      }
    });
  })
  return out;
}

// The products of q with four keys, key[offset]..., lane by lane: the sum of a vector's lanes is the product
template <typename T>
inline void products_of(const float* q, const T* const* key, int64_t offset, int64_t n, Vec* out) {
  Vec sum[4] = {};
  int64_t d = 0;
  for (; d + kLanes <= n; d += kLanes) {
    const Vec at = load(q + d);
    for (int j = 0; j < 4; ++j) sum[j] += at * load(key[j] + offset + d);
  }
  for (int64_t l = 0; d < n; ++d, ++l)
    for (int j = 0; j < 4; ++j) sum[j][l] += q[d] * static_cast<float>(key[j][offset + d]);
  for (int j = 0; j < 4; ++j) out[j] = sum[j];
}

// V vectors of the sum of rows of values, row[offset]..., by their weights
template <int V, typename T>
inline void weighted_sum(const float* weights, const T* const* row, int64_t steps, int64_t offset, float* out) {
  Vec sum[V] = {};
  for (int64_t t = 0; t < steps; ++t)
    for (int v = 0; v < V; ++v) sum[v] += weights[t] * load(row[t] + offset + v * kLanes);
  for (int v = 0; v < V; ++v) store(out + v * kLanes, sum[v]);
}

// One word a batch row, and a history that it does not hold itself: step t's key is keys[t, origin[b, t]], so that reordering beams
// moves indices and no keys; -1 marks a pad. weights, (heads, batch, steps), takes the probabilities unless it is null.
template <typename T>
void history_rows(const T* q, const T* keys, const T* values, const int64_t* origin, T* out, float* weights, const Layout& at_q,
                  const Layout& at_k, const Layout& at_v, const Layout& at_out, int64_t batch, int64_t steps, int64_t heads,
                  int64_t head_dim, int64_t begin, int64_t end) {
  const int64_t dim = padded(head_dim), places = padded(steps);
  const float scale = 1.f / std::sqrt(static_cast<float>(head_dim));
  std::vector<float> query(dim), probs(places), result(dim);
  std::vector<const T*> key_rows(places, keys), value_rows(steps);  // the places after the last step get no weight
  Vec square[kLanes];
  for (int64_t b = begin; b < end; ++b) {
    const int64_t* rows = origin + b * steps;
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t row = std::max<int64_t>(rows[t], 0);
      key_rows[t] = keys + t * at_k.len_stride + row * at_k.batch_stride;
      value_rows[t] = values + t * at_v.len_stride + row * at_v.batch_stride;
    }
    for (int64_t h = 0; h < heads; ++h) {
      copy_scaled(q + b * at_q.batch_stride + h * at_q.head_stride, query.data(), head_dim, scale);
      Vec tops = Vec{} + kLowest, sums = {};
      for (int64_t first = 0; first < places; first += kLanes) {
        // four products at once, and the lanes of each summed for a vector of steps at a time
        for (int64_t l = 0; l < kLanes; l += 4)
          products_of(query.data(), key_rows.data() + first + l, h * at_k.head_stride, head_dim, square + l);
        transpose_square<kLanes / 2>(square);
        Vec scores = square[0];
        for (int l = 1; l < kLanes; ++l) scores += square[l];
        for (int64_t l = 0; l < kLanes; ++l)
          if (first + l >= steps || rows[first + l] < 0) scores[l] = -kInfinity;
        store(probs.data() + first, scores);
        tops = max(tops, scores);
      }
      const float top = max_of(tops);
      for (int64_t j = 0; j < places; j += kLanes) {
        const Vec e = exp_nonpositive(load(probs.data() + j) - top);
        store(probs.data() + j, e);
        sums += e;
      }
      const float share = share_of(sum_of(sums));
      if (weights) copy_scaled(probs.data(), weights + (h * batch + b) * steps, steps, share);
      const int64_t head = h * at_v.head_stride;
      const float* shares = probs.data();
      int64_t d = 0;
      for (; d + 4 * kLanes <= head_dim; d += 4 * kLanes) weighted_sum<4>(shares, value_rows.data(), steps, head + d, result.data() + d);
      for (; d + kLanes <= head_dim; d += kLanes) weighted_sum<1>(shares, value_rows.data(), steps, head + d, result.data() + d);
      for (; d < head_dim; ++d) {
        result[d] = 0.f;
        for (int64_t t = 0; t < steps; ++t) result[d] += shares[t] * static_cast<float>(value_rows[t][head + d]);
      }
      copy_scaled(result.data(), out + b * at_out.batch_stride + h * at_out.head_stride, head_dim, share);
    }
  }
}

// q (1, batch, heads, head_dim); keys, values (steps, rows, heads, head_dim); origin (batch, steps). Returns the output and, if asked
// for, the probabilities (heads, batch, 1, steps)
std::tuple<Tensor, std::optional<Tensor>> history_attention(const Tensor& q, const Tensor& keys, const Tensor& values,
                                                            const Tensor& origin, bool need_weights) {
  const int64_t batch = q.size(1), steps = keys.size(0), heads = q.size(2);
  TORCH_CHECK(q.size(0) == 1 && origin.is_contiguous() && origin.size(0) == batch && origin.size(1) == steps,
              "one query a batch row, and an origin for each of its steps");
  TORCH_CHECK(keys.sizes() == values.sizes() && keys.size(2) == heads && keys.size(3) == q.size(3),
              "keys and values of one shape, with the heads and head_dim of the queries, expected");
  const int64_t* origins = origin.const_data_ptr<int64_t>();
  TORCH_CHECK(std::all_of(origins, origins + batch * steps, [&](int64_t row) { return row < keys.size(1); }),
              "an origin is no row of the history");
  Tensor out = at::empty(q.sizes(), q.options());
  std::optional<Tensor> weights;
  if (need_weights) weights = at::empty({heads, batch, 1, steps}, q.options().dtype(at::kFloat));
  float* wp = weights ? weights->data_ptr<float>() : nullptr;
  const Layout at_q(q), at_k(keys), at_v(values), at_out(out);
  FLOAT_OR_BFLOAT16(q, {
    const scalar *qp = q.const_data_ptr<scalar>(), *kp = keys.const_data_ptr<scalar>(), *vp = values.const_data_ptr<scalar>();
    scalar* op = out.data_ptr<scalar>();
    at::parallel_for(0, batch, 4, [&](int64_t begin, int64_t end) {
      history_rows(qp, kp, vp, origins, op, wp, at_q, at_k, at_v, at_out, batch, steps, heads, q.size(3), begin, end);
    });
  })
  return {out, weights};
}

// Writes the gradients at q, k, v into the given tensors (any strides over len and batch); probabilities are made again
void attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::optional<Tensor>& pads, const std::optional<Tensor>& attn_mask, Tensor grad_q, Tensor grad_k,
                        Tensor grad_v) {
  const Shape s(q, k, v, pads, attn_mask);
  const Layout at_q(q), at_k(k), at_v(v), at_grad(grad), at_gq(grad_q), at_gk(grad_k), at_gv(grad_v);
  const float scale = 1.f / std::sqrt(static_cast<float>(s.head_dim));
  const std::vector<float> mask = padded_mask(s, attn_mask);
  FLOAT_OR_BFLOAT16(q, {
    const scalar *qp = q.const_data_ptr<scalar>(), *kp = k.const_data_ptr<scalar>(), *vp = v.const_data_ptr<scalar>(),
                 *gp = grad.const_data_ptr<scalar>();
    scalar *gq = grad_q.data_ptr<scalar>(), *gk = grad_k.data_ptr<scalar>(), *gv = grad_v.data_ptr<scalar>();
    for_each_head(s, [&](int64_t begin, int64_t end) {
      const int64_t long_side = std::max(s.tgt_len, s.src);
      std::vector<float> qs(s.tgt_len * s.dim), ks(s.src * s.dim), vs(s.src * s.dim), transposed(s.dim * s.src), gs(s.tgt_len * s.dim),
          probs(s.tgt_len * s.src), slopes(s.tgt_len * s.src), result(long_side * s.dim), at_pads(s.src);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / s.heads, h = i % s.heads;
        read_rows(qp, at_q, s, s.tgt_len, b, h, scale, qs.data());
        read_rows(kp, at_k, s, s.src_len, b, h, 1.f, ks.data());
        read_rows(vp, at_v, s, s.src_len, b, h, 1.f, vs.data());
        read_rows(gp, at_grad, s, s.tgt_len, b, h, 1.f, gs.data());
        padded_pads(s, row_or_null(pads, b), at_pads.data());
        transpose(ks.data(), s, transposed.data());
        probabilities(s, qs.data(), transposed.data(), mask.data(), at_pads.data(), probs.data());
        // gradient at v: P^T g
        product(s.src_len, s.dim, s.tgt_len, probs.data(), 1, s.src, gs.data(), s.dim, result.data(), s.dim);
        write_rows(result.data(), s, s.src_len, b, h, 1.f, gv, at_gv);
        // gradient at the scores: P (g V^T - its mean under P)
        transpose(vs.data(), s, transposed.data());
        product(s.tgt_len, s.src, s.head_dim, gs.data(), s.dim, 1, transposed.data(), s.src, slopes.data(), s.src);
        softmax_backward(s, probs.data(), slopes.data());
        // at q (scaled once here) and at k (qs holds the scale already)
        product(s.tgt_len, s.dim, s.src_len, slopes.data(), s.src, 1, ks.data(), s.dim, result.data(), s.dim);
        write_rows(result.data(), s, s.tgt_len, b, h, scale, gq, at_gq);
        product(s.src_len, s.dim, s.tgt_len, slopes.data(), 1, s.src, qs.data(), s.dim, result.data(), s.dim);
        write_rows(result.data(), s, s.src_len, b, h, 1.f, gk, at_gk);
      }
    });
  })
}

// ------------------------------------------------------------------------------------------------------------------- loss
// Label smoothed loss of rows of logits (float), and its gradient at them written over them.

void label_smoothed_row(float* z, int64_t n, int64_t target, float epsilon, float smooth, float* loss, float* nll) {
  const int64_t whole = n / kLanes * kLanes, rest = n - whole;  // the rest goes through a vector of its own
  const float at_target = z[target], hit = 1.f - epsilon - smooth;
  Vec tops = Vec{} + kLowest, totals = {}, sums = {}, tail = Vec{} - kInfinity;
  float total = 0.f;
  for (int64_t l = 0; l < rest; ++l) {
    tail[l] = z[whole + l];
    total += z[whole + l];
  }
  tops = max(tops, tail);
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec x = load(z + i);
    tops = max(tops, x);
    totals += x;
  }
  const float top = max_of(tops);
  total += sum_of(totals);
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec e = exp_nonpositive(load(z + i) - top);
    store(z + i, e);
    sums += e;
  }
  tail = exp_nonpositive(tail - top);
  const float sum = sum_of(sums + tail), log_sum = top + std::log(sum), scale = 1.f / sum;
  *nll = log_sum - at_target;
  *loss = hit * *nll + smooth * (n * log_sum - total);
  // weights of all log p sum to 1, so the gradient at z_v is p_v - smooth - [v = target] (1 - epsilon - smooth)
  for (int64_t i = 0; i < whole; i += kLanes) store(z + i, load(z + i) * scale - smooth);
  for (int64_t l = 0; l < rest; ++l) z[whole + l] = tail[l] * scale - smooth;
  z[target] -= hit;
}

// logits (rows, vocab) float, overwritten by the gradient; returns (loss, nll), a value a row
std::tuple<Tensor, Tensor> label_smoothed_rows(Tensor logits, const Tensor& target, double epsilon, double smooth) {
  const int64_t rows = logits.size(0), n = logits.size(1);
  Tensor loss = at::empty({rows}, logits.options()), nll = at::empty({rows}, logits.options());
  float *z = logits.data_ptr<float>(), *l = loss.data_ptr<float>(), *p = nll.data_ptr<float>();
  const int64_t* t = target.const_data_ptr<int64_t>();
  TORCH_CHECK(logits.is_contiguous() && target.is_contiguous() && target.numel() == rows, "a target for each row, without gaps, expected");
  TORCH_CHECK(std::all_of(t, t + rows, [&](int64_t type) { return 0 <= type && type < n; }), "a target is none of the ", n, " types");
  at::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      label_smoothed_row(z + r * n, n, t[r], static_cast<float>(epsilon), static_cast<float>(smooth), l + r, p + r);
  });
  return {loss, nll};
}

// The kernels are built for the machine that builds them. On another one, which shares the folder and lacks an instruction set,
// the import fails, and torch's operators take over, in place of an illegal instruction later.
void refuse_another_cpu() {
#define NEEDS(feature) \
  if (!__builtin_cpu_supports(feature)) throw pybind11::import_error("the kernels were built for a CPU with " feature)
#ifdef __AVX2__
  NEEDS("avx2");
#endif
#ifdef __FMA__
  NEEDS("fma");
#endif
#ifdef __AVX512F__
  NEEDS("avx512f");
#endif
#ifdef __AVX512BW__
  NEEDS("avx512bw");
#endif
#ifdef __AVX512VL__
  NEEDS("avx512vl");
#endif
#ifdef __AVX512DQ__
  NEEDS("avx512dq");
#endif
#undef NEEDS
}

// ------------------------------------------------------------------------------------------------------------ beam search
// Log-probabilities of the first types and of the best others of a row of logits. The k best so far are kept in order; blocks of
// 64 logits that hold none above the least of them, nearly all, are passed over.

void best_types_row(const float* z, int64_t n, int64_t specials, int64_t count, float* lprobs, int64_t* types) {
  constexpr int64_t kStep = 4 * kLanes;
  float* best = lprobs + specials;
  int64_t* which = types + specials;
  std::fill(best, best + count, -kInfinity);
  std::fill(which, which + count, specials);
  const auto look = [&](int64_t i) {
    if (!(z[i] > best[count - 1])) return;
    int64_t at = count - 1;
    for (; at > 0 && z[i] > best[at - 1]; --at) {
      best[at] = best[at - 1];
      which[at] = which[at - 1];
    }
    best[at] = z[i];
    which[at] = i;
  };
  float top = -kInfinity;
  for (int64_t i = 0; i < specials; ++i) {
    types[i] = i;
    top = std::max(top, z[i]);
  }
  int64_t i = specials;
  for (; i + kStep <= n; i += kStep) {
    const Vec high = max(max(load(z + i), load(z + i + kLanes)), max(load(z + i + 2 * kLanes), load(z + i + 3 * kLanes)));
    if (max_of(high) > best[count - 1])
      for (int64_t j = i; j < i + kStep; ++j) look(j);
  }
  for (; i < n; ++i) look(i);
  top = std::max(top, best[0]);
  Vec sums = {};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) sums += exp_nonpositive(load(z + j) - top);
  Vec tail = Vec{} - kInfinity;
  for (int64_t l = 0; j + l < n; ++l) tail[l] = z[j + l] - top;
  const float log_sum = std::log(sum_of(sums + exp_nonpositive(tail)));
  for (int64_t l = 0; l < specials; ++l) lprobs[l] = z[l] - top - log_sum;
  for (int64_t l = 0; l < count; ++l) best[l] = best[l] - top - log_sum;
}

// logits (rows, vocab) float; returns (rows, specials + count) log-probabilities, and the types that they are of
std::tuple<Tensor, Tensor> best_types(const Tensor& logits, int64_t specials, int64_t count) {
  const int64_t rows = logits.size(0), n = logits.size(1), width = specials + count;
  TORCH_CHECK(logits.is_contiguous() && specials >= 0 && count > 0 && width <= n, "rows without gaps, of more types than asked for, expected");
  Tensor lprobs = at::empty({rows, width}, logits.options()), types = at::empty({rows, width}, logits.options().dtype(at::kLong));
  const float* z = logits.const_data_ptr<float>();
  float* l = lprobs.data_ptr<float>();
  int64_t* t = types.data_ptr<int64_t>();
  at::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) best_types_row(z + r * n, n, specials, count, l + r * width, t + r * width);
  });
  return {lprobs, types};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  refuse_another_cpu();
  m.doc() = "CPU kernels of fairseq_lnplugin.fused";
  m.attr("source") = KERNELS_SOURCE;  // a checksum of this file and of torch's version
  m.def("dropout_add", &dropout_add, "x + dropout(y)");
  m.def("dropout_backward", &dropout_backward, "gradient at y of x + dropout(y)");
  m.def("layer_norm", &layer_norm, "LN(x) and the rows' statistics");
  m.def("layer_norm_backward", &layer_norm_backward, "gradients of LN at x, weight, bias");
  m.def("label_smoothed_rows", &label_smoothed_rows, "label smoothed loss and nll of logits, which become the gradient");
  m.def("best_types", &best_types, "log-probabilities of the first types and of each row's best others");
  m.def("attention", &attention, "softmax(q k^T / sqrt(d) + masks) v");
  m.def("history_attention", &history_attention, "attention of one word a row to the steps that its history points to");
  m.def("attention_backward", &attention_backward, "gradients of attention at q, k, v, written in place");
}
