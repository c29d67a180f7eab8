// The stripe convolution on a CPU, in float32.
//
// out[o] = sum over o's kept positions p, over channels c, of weight[o, p, c] * x[c] shifted by p.
//
// A filter keeps its own positions, so this is no matrix product as a whole; but for one position it is one, over the
// filters that keep it. A tile of output pixels stays in cache while all positions add to it, and a block of up to
// MOST filters by a few vectors of pixels stays in registers while all channels do. Padding and stride are dealt with
// once, when an image is copied: with a stride its pixels are dealt out into one plane for each phase, in which
// neighbouring outputs read neighbouring values again.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ACCUMULATORS = 24, MOST = 12;
#elif defined(__AVX2__)
constexpr int LANES = 8, ACCUMULATORS = 12, MOST = 6;
#else
constexpr int LANES = 4, ACCUMULATORS = 12, MOST = 6;
#endif
constexpr int64_t TILE = 24;  // vectors of output pixels that stay in cache

typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

// F filters by V vectors of pixels: out[f][v] += sum over c of w[c][f] * x[c][v].
template <int F, int V>
inline void add_block(const float* x, int64_t plane, int64_t channels, const int64_t* from, const float* w, float* out,
                      int64_t out_plane, const int64_t* to, const int64_t* filters) {
  vec sum[F][V];
  const float* at[V];
  for (int v = 0; v < V; v++) at[v] = x + from[v];
  // All loops over registers are unrolled: one that is not would send them through memory.
#pragma GCC unroll 12
  for (int f = 0; f < F; f++)
#pragma GCC unroll 12
    for (int v = 0; v < V; v++) sum[f][v] = vec{};
  for (int64_t c = 0; c < channels; c++, w += F) {
    vec pixels[V];
#pragma GCC unroll 12
    for (int v = 0; v < V; v++) {
      pixels[v] = *reinterpret_cast<const vec*>(at[v]);
      at[v] += plane;
    }
#pragma GCC unroll 12
    for (int f = 0; f < F; f++) {
      const float value = w[f];
#pragma GCC unroll 12
      for (int v = 0; v < V; v++) sum[f][v] += value * pixels[v];
    }
  }
#pragma GCC unroll 12
  for (int f = 0; f < F; f++)
#pragma GCC unroll 12
    for (int v = 0; v < V; v++) *reinterpret_cast<vec*>(out + filters[f] * out_plane + to[v]) += sum[f][v];
}

// The same for n vectors, a few at a time.
template <int F>
void add_tile(const float* x, int64_t plane, int64_t channels, const int64_t* from, const float* w, float* out,
              int64_t out_plane, const int64_t* to, const int64_t* filters, int64_t n) {
  constexpr int V = ACCUMULATORS / F > 8 ? 8 : ACCUMULATORS / F;
  int64_t i = 0;
  for (; i + V <= n; i += V) add_block<F, V>(x, plane, channels, from + i, w, out, out_plane, to + i, filters);
  for (; i < n; i++) add_block<F, 1>(x, plane, channels, from + i, w, out, out_plane, to + i, filters);
}

using AddTile = void (*)(const float*, int64_t, int64_t, const int64_t*, const float*, float*, int64_t, const int64_t*,
                         const int64_t*, int64_t);
const AddTile ADD_TILE[] = {
    nullptr,     add_tile<1>, add_tile<2>, add_tile<3>, add_tile<4>, add_tile<5>, add_tile<6>,
#if defined(__AVX512F__)
    add_tile<7>, add_tile<8>, add_tile<9>, add_tile<10>, add_tile<11>, add_tile<12>,
#endif
};

// Reused from call to call: fresh memory would cost more than what is done in it.
float* buffer(std::vector<float>& memory, int64_t size) {
  if (static_cast<int64_t>(memory.size()) < size) memory.assign(size, 0.f);
  return memory.data();
}

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// x: (N, C, H, W). weights: for each block (C, filters), flat. blocks: (B, 3): the kernel position, how many filters,
// where they begin in `filters`. padding: top, bottom, left, right; may be negative.
at::Tensor stripe_conv2d(const at::Tensor& input, const at::Tensor& weights, const at::Tensor& blocks,
                         const at::Tensor& filters, const std::optional<at::Tensor>& bias, int64_t outputs,
                         at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                         at::IntArrayRef dilation) {
  const at::Tensor x = input.contiguous();
  const int64_t images = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t sh = stride[0], sw = stride[1], top = padding[0], left = padding[2];
  const int64_t padded_h = height + top + padding[1], padded_w = width + left + padding[3];
  const int64_t out_h = (padded_h - dilation[0] * (kernel[0] - 1) - 1) / sh + 1;
  const int64_t out_w = (padded_w - dilation[1] * (kernel[1] - 1) - 1) / sw + 1;
  const int64_t rows = (padded_h + sh - 1) / sh, columns = (padded_w + sw - 1) / sw;  // of a phase
  at::Tensor result = at::empty({images, outputs, out_h, out_w}, x.options());

  // Outputs lie row by row, each rounded up to whole vectors, or in one go with the padding between the rows computed
  // as well: whichever is less.
  const bool by_row = out_h * (up(out_w, LANES) / LANES) <= up(out_h * columns, LANES) / LANES;
  const int64_t out_row = by_row ? up(out_w, LANES) : columns;
  const bool direct = by_row && out_row == out_w;  // then they need not be copied
  std::vector<int64_t> from, to;
  for (int64_t row = 0; row < (by_row ? out_h : 1); row++)
    for (int64_t j = 0; j < (by_row ? out_row : out_h * columns); j += LANES) {
      from.push_back(row * columns + j);
      to.push_back(row * out_row + j);
    }
  const int64_t vectors = from.size();
  int64_t plane = up(rows * columns + 2 * LANES, LANES);
  if (plane % 1024 == 0) plane += LANES;  // or all channels would want the same lines of the cache
  const int64_t phase = channels * plane, image = sh * sw * phase;
  const int64_t out_plane = direct ? out_h * out_w : up(out_h * out_row, LANES) + LANES, out_image = outputs * out_plane;

  const int64_t* block = blocks.const_data_ptr<int64_t>();
  const int64_t* filter = filters.const_data_ptr<int64_t>();
  const float* weight = weights.const_data_ptr<float>();
  const float* source = x.const_data_ptr<float>();
  const float* add = bias ? bias->const_data_ptr<float>() : nullptr;
  float* target = result.mutable_data_ptr<float>();
  const int64_t count = blocks.size(0);
  std::vector<int64_t> shift(count), start(count);
  for (int64_t b = 0, at = 0; b < count; b++) {
    const int64_t dh = block[3 * b] / kernel[1] * dilation[0], dw = block[3 * b] % kernel[1] * dilation[1];
    shift[b] = (dh % sh * sw + dw % sw) * phase + dh / sh * columns + dw / sw;
    start[b] = at;
    at += block[3 * b + 1] * channels;
  }

  const int64_t threads = at::get_num_threads(), together = std::min(images, threads);
  thread_local std::vector<float> in_memory, out_memory;
  float* const in = buffer(in_memory, together * image + 4 * LANES);  // shifts read a little past the last plane
  float* const out = direct ? nullptr : buffer(out_memory, together * out_image);
  for (int64_t first = 0; first < images; first += together) {
    const int64_t n = std::min(together, images - first);
    at::parallel_for(0, n * channels, std::max<int64_t>(1, channels / 4), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const float* pixels = source + (first * channels + i) * height * width;
        for (int64_t p = 0; p < sh * sw; p++) {
          float* line = in + i / channels * image + p * phase + i % channels * plane;
          float* const end_of_plane = line + plane;
          for (int64_t r = 0; r < rows; r++, line += columns) {
            const int64_t h = r * sh + p / sw - top;
            const int64_t w = p % sw - left;  // of the first column; column q is at w + q * sw
            const bool inside = h >= 0 && h < height && w < width;
            const int64_t low = inside ? std::min(columns, w >= 0 ? 0 : (-w + sw - 1) / sw) : columns;
            const int64_t high = inside ? std::clamp((width - w + sw - 1) / sw, low, columns) : columns;
            const float* row = pixels + h * width + w;
            std::fill(line, line + low, 0.f);
            if (sw == 1)
              std::copy(row + low, row + high, line + low);
            else
              for (int64_t q = low; q < high; q++) line[q] = row[q * sw];
            std::fill(line + high, line + columns, 0.f);
          }
          std::fill(line, end_of_plane, 0.f);
        }
      }
    });
    const int64_t tile = std::min(TILE, (n * vectors + threads - 1) / threads), tiles = (vectors + tile - 1) / tile;
    at::parallel_for(0, n * tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t own = i / tiles, v = i % tiles * tile, m = std::min(tile, vectors - v);
        float* sums = direct ? target + (first + own) * out_image : out + own * out_image;
        for (int64_t o = 0; o < outputs; o++)
          for (int64_t j = v; j < v + m; j++)
            *reinterpret_cast<vec*>(sums + o * out_plane + to[j]) = vec{} + (add ? add[o] : 0.f);
        for (int64_t b = 0; b < count; b++)
          ADD_TILE[block[3 * b + 1]](in + own * image + shift[b], plane, channels, &from[v], weight + start[b], sums,
                                     out_plane, &to[v], filter + block[3 * b + 2], m);
      }
    });
    if (direct) continue;
    at::parallel_for(0, n * outputs, std::max<int64_t>(1, outputs / 4), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        for (int64_t row = 0; row < out_h; row++)
          std::memcpy(target + ((first * outputs + i) * out_h + row) * out_w,
                      out + i / outputs * out_image + i % outputs * out_plane + row * out_row, out_w * sizeof(float));
    });
  }
  return result;
}

int64_t most() { return MOST; }

}  // namespace

TORCH_LIBRARY(secateurs_native, m) {
  m.def("most() -> int", most);
  m.def(
      "stripe_conv2d(Tensor x, Tensor weights, Tensor blocks, Tensor filters, Tensor? bias, int outputs, int[] kernel, "
      "int[] stride, int[] padding, int[] dilation) -> Tensor",
      stripe_conv2d);
}
