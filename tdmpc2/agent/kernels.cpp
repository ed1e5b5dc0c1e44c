// What happens between the matrix products, in one pass over memory each: LayerNorm with Mish, LayerNorm with SimNorm,
// the two-hot expectation, and their gradients. Compiled by kernels.py with this machine's compiler; no headers of
// torch, so that takes about a second.
//
// Tensors are rows of n entries; an ensemble's are (members, rows, n) with scales and offsets (members, n). All are
// contiguous but a normalisation's input and its gradient, whose rows and members may lie apart by any stride. Inputs and outputs are float32 or bfloat16, everything between is float32. The loops are written for
// the compiler to vectorise.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

struct bfloat16 {
  uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void store(float& to, float x) { to = x; }
inline void store(bfloat16& to, float x) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = static_cast<uint16_t>(x == x ? rounded : 0x7fc0);
}

// exp(x) to 1e-7, for x clamped to [-87, 88]; x = k ln 2 + f, and a polynomial in f (the coefficients of Cephes' expf).
// NaN is clamped too: callers that must pass it on multiply by x.
inline float fast_exp(float x) {
  x = x > -87.0f ? x : -87.0f;
  x = x < 88.0f ? x : 88.0f;
  const float shifted = x * 1.44269504088896341f + 12582912.0f;  // adding 1.5 * 2^23 rounds to a whole number
  const float k = shifted - 12582912.0f;
  float f = x - k * 0.693359375f;
  f = f + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127) << 23;  // the low bits of `shifted` hold k
  float scale;
  std::memcpy(&scale, &bits, 4);
  return p * scale;
}

// Mish(a) = a tanh(log(1 + e^a)) = a h / (h + 1) with h = e^a + e^2a / 2.
inline float mish(float a) {
  const float e = fast_exp(a < 20.0f ? a : 20.0f);
  const float h = e + 0.5f * e * e;
  return a * (h / (h + 1.0f));
}

inline float mish_slope(float a) {
  const float e = fast_exp(a < 20.0f ? a : 20.0f);
  const float h = e + 0.5f * e * e;
  const float inverse = 1.0f / (h + 1.0f);
  return (h + a * (e + e * e) * inverse) * inverse;
}

// Rows first .. last of `count` that fall to this thread.
struct Share {
  int64_t first, last;
};

inline Share share(int64_t count) {
#ifdef _OPENMP
  const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
#else
  const int64_t threads = 1, me = 0;
#endif
  return {count * me / threads, count * (me + 1) / threads};
}

inline int this_thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Reads a row (times its dropout factors) into `row` and returns its mean and 1 / standard deviation.
template <class In>
inline void read_row(const In* x, const float* keep, float* row, int64_t n, float eps, float& mean, float& rstd) {
  float sum = 0.0f;
  if (keep != nullptr) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) {
      const float value = load(x[i]) * keep[i];
      row[i] = value;
      sum += value;
    }
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) {
      const float value = load(x[i]);
      row[i] = value;
      sum += value;
    }
  }
  mean = sum / static_cast<float>(n);
  const float centre = mean;
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) {
    const float d = row[i] - centre;
    squares += d * d;
  }
  rstd = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
}

// Gradient of LayerNorm for one row: `row` is the row itself, `gradient` that of its scaled output. Adds the scales'
// and offsets' gradients; leaves the row's in `gradient`.
inline void layer_norm_backward(const float* row, float* gradient, const float* gamma, float* dgamma, float* dbeta,
                                int64_t n, float mean, float rstd) {
  float sum = 0.0f, product = 0.0f;
#pragma omp simd reduction(+ : sum, product)
  for (int64_t i = 0; i < n; ++i) {
    const float normal = (row[i] - mean) * rstd, g = gradient[i];
    dgamma[i] += g * normal;
    dbeta[i] += g;
    const float scaled = g * gamma[i];
    sum += scaled;
    product += scaled * normal;
    gradient[i] = scaled;
  }
  sum /= static_cast<float>(n);
  product /= static_cast<float>(n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float normal = (row[i] - mean) * rstd;
    gradient[i] = rstd * (gradient[i] - sum - normal * product);
  }
}

typedef float float8 __attribute__((vector_size(32)));
typedef int32_t int8 __attribute__((vector_size(32)));

inline float8 swap_lanes(float8 v, int8 lanes) {
#if defined(__clang__)
  float8 out;
  for (int i = 0; i < 8; ++i) out[i] = v[lanes[i]];
  return out;
#else
  return __builtin_shuffle(v, lanes);
#endif
}

constexpr int8 LANES[3] = {{1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5}, {4, 5, 6, 7, 0, 1, 2, 3}};

// Softmax over each group of `group` neighbours, in place.
inline void simnorm_row(float* row, int64_t n, int64_t group) {
  if (group == 8) {
    for (int64_t i = 0; i < n; i += 8) {
      float8 v, largest;
      std::memcpy(&v, row + i, 32);
      largest = v;
      for (int s = 0; s < 3; ++s) {
        const float8 other = swap_lanes(largest, LANES[s]);
        largest = largest > other ? largest : other;
      }
      v -= largest;
      std::memcpy(row + i, &v, 32);
    }
  } else {
    for (int64_t i = 0; i < n; i += group) {
      float largest = row[i];
      for (int64_t j = 1; j < group; ++j) largest = row[i + j] > largest ? row[i + j] : largest;
      for (int64_t j = 0; j < group; ++j) row[i + j] -= largest;
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) row[i] = fast_exp(row[i]) + 0.0f * row[i];  // NaN and -inf - -inf stay NaN
  if (group == 8) {
    for (int64_t i = 0; i < n; i += 8) {
      float8 v, sum;
      std::memcpy(&v, row + i, 32);
      sum = v;
      for (int s = 0; s < 3; ++s) sum += swap_lanes(sum, LANES[s]);
      v /= sum;
      std::memcpy(row + i, &v, 32);
    }
  } else {
    for (int64_t i = 0; i < n; i += group) {
      float sum = 0.0f;
      for (int64_t j = 0; j < group; ++j) sum += row[i + j];
      for (int64_t j = 0; j < group; ++j) row[i + j] /= sum;
    }
  }
}

// Gradient of the softmax of each group: y the output, g its gradient; replaces g.
inline void simnorm_row_backward(const float* y, float* g, int64_t n, int64_t group) {
  if (group == 8) {
    for (int64_t i = 0; i < n; i += 8) {
      float8 p, d, sum;
      std::memcpy(&p, y + i, 32);
      std::memcpy(&d, g + i, 32);
      sum = p * d;
      for (int s = 0; s < 3; ++s) sum += swap_lanes(sum, LANES[s]);
      d = p * (d - sum);
      std::memcpy(g + i, &d, 32);
    }
  } else {
    for (int64_t i = 0; i < n; i += group) {
      float sum = 0.0f;
      for (int64_t j = 0; j < group; ++j) sum += y[i + j] * g[i + j];
      for (int64_t j = 0; j < group; ++j) g[i + j] = y[i + j] * (g[i + j] - sum);
    }
  }
}

// group = 0: Mish; otherwise SimNorm over groups of that size.
template <class In, class Out>
void forward(const In* x, const float* gamma, const float* beta, const float* keep, Out* y, float* mean, float* rstd,
             int64_t members, int64_t rows, int64_t n, int64_t row_stride, int64_t member_stride, int64_t group, float eps, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Share mine = share(members * rows);
    std::vector<float> buffer(n);
    float* row = buffer.data();
    for (int64_t r = mine.first; r < mine.last; ++r) {
      const int64_t member = r / rows;
      const float *scale = gamma + member * n, *offset = beta + member * n;
      float m, s;
      read_row(x + member * member_stride + (r % rows) * row_stride, keep == nullptr ? nullptr : keep + r * n, row, n, eps, m, s);
      if (mean != nullptr) {
        mean[r] = m;
        rstd[r] = s;
      }
      Out* out = y + r * n;
      if (group == 0) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) store(out[i], mish((row[i] - m) * s * scale[i] + offset[i]));
      } else {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) row[i] = (row[i] - m) * s * scale[i] + offset[i];
        simnorm_row(row, n, group);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) store(out[i], row[i]);
      }
    }
  }
}

// `partial` holds 2 x members x n numbers for each thread: its share of the scales' and offsets' gradients.
template <class In, class Out>
void backward(const Out* dy, const In* x, const float* gamma, const float* beta, const float* keep, const float* mean,
              const float* rstd, In* dx, float* dgamma, float* dbeta, float* partial, int64_t members, int64_t rows,
              int64_t n, int64_t row_stride, int64_t member_stride, int64_t group, int threads) {
  const int64_t width = members * n;
  std::memset(partial, 0, sizeof(float) * 2 * width * threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Share mine = share(members * rows);
    std::vector<float> buffer(3 * n);
    float *row = buffer.data(), *g = row + n, *p = g + n;
    float* sums = partial + 2 * width * this_thread();
    for (int64_t r = mine.first; r < mine.last; ++r) {
      const int64_t member = r / rows;
      const float *scale = gamma + member * n, *offset = beta + member * n;
      const float* factors = keep == nullptr ? nullptr : keep + r * n;
      const int64_t at = member * member_stride + (r % rows) * row_stride;
      const In* in = x + at;
      const Out* upstream = dy + r * n;
      In* out = dx + at;
      const float m = mean[r], s = rstd[r];
      if (factors != nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) row[i] = load(in[i]) * factors[i];
      } else {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) row[i] = load(in[i]);
      }
      if (group == 0) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i)
          g[i] = load(upstream[i]) * mish_slope((row[i] - m) * s * scale[i] + offset[i]);
      } else {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
          p[i] = (row[i] - m) * s * scale[i] + offset[i];
          g[i] = load(upstream[i]);
        }
        simnorm_row(p, n, group);
        simnorm_row_backward(p, g, n, group);
      }
      layer_norm_backward(row, g, scale, sums + member * n, sums + width + member * n, n, m, s);
      if (factors != nullptr) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) store(out[i], g[i] * factors[i]);
      } else {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) store(out[i], g[i]);
      }
    }
  }
  for (int64_t i = 0; i < width; ++i) {
    float scales = 0.0f, offsets = 0.0f;
    for (int t = 0; t < threads; ++t) {
      scales += partial[2 * width * t + i];
      offsets += partial[2 * width * t + width + i];
    }
    dgamma[i] = scales;
    dbeta[i] = offsets;
  }
}

// Probabilities of a row's bins into `p`; returns their expected bin.
template <class In>
inline float expected_bin(const In* logits, const float* bins, float* p, int64_t n) {
  float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) {
    p[i] = load(logits[i]);
    largest = p[i] > largest ? p[i] : largest;
  }
  float sum = 0.0f, moment = 0.0f;
#pragma omp simd reduction(+ : sum, moment)
  for (int64_t i = 0; i < n; ++i) {
    const float difference = p[i] - largest;
    const float e = fast_exp(difference) + 0.0f * difference;
    p[i] = e;
    sum += e;
    moment += e * bins[i];
  }
  const float inverse = 1.0f / sum;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) p[i] *= inverse;
  return moment * inverse;
}

template <class In>
void decode(const In* logits, const float* bins, float* out, int64_t rows, int64_t n, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Share mine = share(rows);
    std::vector<float> buffer(n);
    for (int64_t r = mine.first; r < mine.last; ++r) {
      const float x = expected_bin(logits + r * n, bins, buffer.data(), n);
      out[r] = std::copysign(std::expm1(std::fabs(x)), x);
    }
  }
}

template <class In>
void decode_backward(const float* dout, const In* logits, const float* bins, In* dlogits, int64_t rows, int64_t n,
                     int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Share mine = share(rows);
    std::vector<float> buffer(n);
    float* p = buffer.data();
    for (int64_t r = mine.first; r < mine.last; ++r) {
      const float x = expected_bin(logits + r * n, bins, p, n);
      const float g = dout[r] * std::exp(std::fabs(x));
      In* out = dlogits + r * n;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) store(out[i], g * p[i] * (bins[i] - x));
    }
  }
}

}  // namespace

#define FORWARD(NAME, IN, OUT)                                                                                         \
  extern "C" void NAME(const IN* x, const float* gamma, const float* beta, const float* keep, OUT* y, float* mean,     \
                       float* rstd, int64_t members, int64_t rows, int64_t n, int64_t row_stride, int64_t member_stride, int64_t group, float eps, int threads) { \
    forward<IN, OUT>(x, gamma, beta, keep, y, mean, rstd, members, rows, n, row_stride, member_stride, group, eps, threads);                      \
  }
#define BACKWARD(NAME, IN, OUT)                                                                                        \
  extern "C" void NAME(const OUT* dy, const IN* x, const float* gamma, const float* beta, const float* keep,           \
                       const float* mean, const float* rstd, IN* dx, float* dgamma, float* dbeta, float* partial,      \
                       int64_t members, int64_t rows, int64_t n, int64_t row_stride, int64_t member_stride, int64_t group, int threads) {                         \
    backward<IN, OUT>(dy, x, gamma, beta, keep, mean, rstd, dx, dgamma, dbeta, partial, members, rows, n, row_stride, member_stride, group, threads);                                                                                        \
  }
#define DECODE(NAME, IN)                                                                                               \
  extern "C" void NAME(const IN* logits, const float* bins, float* out, int64_t rows, int64_t n, int threads) {        \
    decode<IN>(logits, bins, out, rows, n, threads);                                                                   \
  }                                                                                                                    \
  extern "C" void NAME##_backward(const float* dout, const IN* logits, const float* bins, IN* dlogits, int64_t rows,   \
                                  int64_t n, int threads) {                                                            \
    decode_backward<IN>(dout, logits, bins, dlogits, rows, n, threads);                                                \
  }

FORWARD(normed_f32_f32, float, float)
FORWARD(normed_f32_bf16, float, bfloat16)
FORWARD(normed_bf16_f32, bfloat16, float)
FORWARD(normed_bf16_bf16, bfloat16, bfloat16)
BACKWARD(normed_f32_f32_backward, float, float)
BACKWARD(normed_f32_bf16_backward, float, bfloat16)
BACKWARD(normed_bf16_f32_backward, bfloat16, float)
BACKWARD(normed_bf16_bf16_backward, bfloat16, bfloat16)
DECODE(decode_f32, float)
DECODE(decode_bf16, bfloat16)
