// The stripe convolution on a CPU, in float32.
//
// out[o] = sum over o's kept positions p, over channels c, of weight[o, p, c] * x[c] shifted by p.
//
// A filter keeps its own positions, so this is no matrix product as a whole; but for one position it is one, over the
// filters that keep it. A tile of output pixels stays in cache while all positions add to it, and a block of filters by
// a few pixels stays in registers while all channels do. There are two ways to fill a register:
//
// - `stripe_conv2d`: with neighbouring pixels. Padding and stride are dealt with once, when an image is copied: with a
//   stride its pixels are dealt out into one plane for each phase, in which neighbouring outputs read neighbouring
//   values, and a position is an offset.
// - `stripe_conv2d_wide`: with filters, for maps whose rows are shorter than a register. A pixel is a pointer to its
//   channels, one outside the image a pointer to zeros.
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
int64_t over(int64_t n, int64_t by) { return (n + by - 1) / by; }

struct Block {
  int64_t position, filters, first, weights;  // how many filters, where they begin in the list, where their weights do
};

struct Problem {
  int64_t images, channels, height, width, outputs, out_h, out_w;
  int64_t sh, sw, top, left, dh, dw, rows_of_kernel, columns_of_kernel, padded_w;
  const float *x, *weights, *bias;
  float* out;
  const int64_t* filters;
  std::vector<Block> blocks;

  float start(int64_t o) const { return bias ? bias[o] : 0.f; }
};

void set(float* to, float value) { *reinterpret_cast<vec*>(to) = vec{} + value; }

// -- pixels in registers -----------------------------------------------------------------------------------------------

constexpr int64_t BAND = 1 << 16;  // values of the copied input that are worked on at a time

// A band of output rows of one image: what it reads is copied, by phases, and its positions are offsets into the copy.
struct Band {
  int64_t most, below, columns;  // output rows; rows of a phase that they read beyond their own; columns of a phase
  bool by_row;  // outputs row by row, each in whole vectors; else in one go, the padding between rows computed as well
  int64_t out_row, plane, phase, out_plane;
  std::vector<int64_t> shift, from, to;

  explicit Band(const Problem& p)
      : below(p.dh * (p.rows_of_kernel - 1) / p.sh), columns(over(p.padded_w, p.sw)) {
    const int64_t phases = p.sh * p.sw, fits = BAND / (p.channels * phases * columns) - below;
    most = std::clamp<int64_t>(fits, 1, over(p.images * p.out_h, at::get_num_threads()));
    most = over(p.out_h, over(p.out_h, most));  // bands of one height, as near as can be
    by_row = up(p.out_w, LANES) <= columns;
    out_row = by_row ? up(p.out_w, LANES) : columns;
    plane = up((most + below) * columns + 2 * LANES, LANES);
    if (plane % 1024 == 0) plane += LANES;  // or all channels would want the same lines of the cache
    phase = p.channels * plane;
    out_plane = up(most * out_row, LANES) + LANES;
    for (const Block& b : p.blocks) {
      const int64_t h = b.position / p.columns_of_kernel * p.dh, w = b.position % p.columns_of_kernel * p.dw;
      shift.push_back((h % p.sh * p.sw + w % p.sw) * phase + h / p.sh * columns + w / p.sw);
    }
    for (int64_t row = 0; row < (by_row ? most : 1); row++)
      for (int64_t j = 0; j < (by_row ? out_row : most * columns); j += LANES) {
        from.push_back(row * columns + j);
        to.push_back(row * out_row + j);
      }
  }

  int64_t vectors(int64_t rows) const { return by_row ? rows * (out_row / LANES) : over(rows * columns, LANES); }
};

// One channel of one phase, from the phase's row `first` on.
void copy_plane(const Problem& p, const Band& l, const float* pixels, int64_t phase_h, int64_t phase_w, int64_t first,
                int64_t rows, float* line, float* end) {
  for (int64_t r = first; r < first + rows; r++, line += l.columns) {
    const int64_t h = r * p.sh + phase_h - p.top;
    const int64_t w = phase_w - p.left;  // of the first column; column q is at w + q * sw
    const bool inside = h >= 0 && h < p.height && w < p.width;
    const int64_t low = inside ? std::min(l.columns, w >= 0 ? 0 : over(-w, p.sw)) : l.columns;
    const int64_t high = inside ? std::clamp(over(p.width - w, p.sw), low, l.columns) : l.columns;
    const float* row = pixels + h * p.width + w;
    std::fill(line, line + low, 0.f);
    if (p.sw == 1)
      std::copy(row + low, row + high, line + low);
    else
      for (int64_t q = low; q < high; q++) line[q] = row[q * p.sw];
    std::fill(line + high, line + l.columns, 0.f);
  }
  std::fill(line, end, 0.f);
}

void pixels_in_registers(const Problem& p) {
  const Band l(p);
  const bool direct = l.by_row && l.out_row == p.out_w;  // the outputs need not be copied
  const int64_t bands = over(p.out_h, l.most), phases = p.sh * p.sw;
  at::parallel_for(0, p.images * bands, 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> in_memory, out_memory;
    float* const in = buffer(in_memory, phases * l.phase + 4 * LANES);  // offsets read a little past the last plane
    float* const sums = direct ? nullptr : buffer(out_memory, p.outputs * l.out_plane);
    for (int64_t i = begin; i < end; i++) {
      const int64_t image = i / bands, first = i % bands * l.most, rows = std::min(l.most, p.out_h - first);
      for (int64_t k = 0; k < phases; k++)
        for (int64_t c = 0; c < p.channels; c++) {
          float* own = in + k * l.phase + c * l.plane;
          copy_plane(p, l, p.x + (image * p.channels + c) * p.height * p.width, k / p.sw, k % p.sw, first,
                     rows + l.below, own, own + l.plane);
        }
      float* const result = p.out + image * p.outputs * p.out_h * p.out_w + first * p.out_w;
      float* const target = direct ? result : sums;
      const int64_t out_plane = direct ? p.out_h * p.out_w : l.out_plane, vectors = l.vectors(rows);
      for (int64_t v = 0; v < vectors; v += TILE) {
        const int64_t m = std::min(TILE, vectors - v);
        for (int64_t o = 0; o < p.outputs; o++)
          for (int64_t j = v; j < v + m; j++) set(target + o * out_plane + l.to[j], p.start(o));
        for (size_t b = 0; b < p.blocks.size(); b++)
          ADD_TILE[p.blocks[b].filters](in + l.shift[b], l.plane, p.channels, &l.from[v],
                                        p.weights + p.blocks[b].weights, target, out_plane, &l.to[v],
                                        p.filters + p.blocks[b].first, m);
      }
      if (direct) continue;
      for (int64_t o = 0; o < p.outputs; o++)
        for (int64_t row = 0; row < rows; row++) {
          const float* line = sums + o * l.out_plane + row * l.out_row;
          std::copy(line, line + p.out_w, result + (o * p.out_h + row) * p.out_w);
        }
    }
  });
}

// -- filters in registers ----------------------------------------------------------------------------------------------

constexpr int MANY = ACCUMULATORS / 2, FEW = MANY / 3;  // pixels at a time
constexpr int64_t WIDE_TILE = 16 * MANY;  // pixels whose channels stay in cache

// V vectors of filters by P pixels: sums[p] = sum over c of w[c] * x[p][c].
template <int V, int P>
inline void multiply(const float* const* x, const float* w, int64_t channels, vec* sums) {
  vec sum[P][V];
#pragma GCC unroll 12
  for (int p = 0; p < P; p++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[p][v] = vec{};
  for (int64_t c = 0; c < channels; c++, w += V * LANES) {
    vec values[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) values[v] = reinterpret_cast<const vec*>(w)[v];
#pragma GCC unroll 12
    for (int p = 0; p < P; p++) {
      const float pixel = x[p][c];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[p][v] += pixel * values[v];
    }
  }
#pragma GCC unroll 12
  for (int p = 0; p < P; p++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sums[p * V + v] = sum[p][v];
}

// x: n pointers to channels, with MANY more to zeros behind them. out: (n, outputs).
template <int V>
void add_wide(const float* const* x, int64_t n, const float* w, int64_t channels, float* out, int64_t outputs,
              const int64_t* filters, int64_t count) {
  vec sums[MANY * V];
  for (int64_t i = 0; i < n;) {
    const int64_t step = n - i >= MANY ? MANY : FEW;
    if (step == MANY)
      multiply<V, MANY>(x + i, w, channels, sums);
    else
      multiply<V, FEW>(x + i, w, channels, sums);
    for (int64_t p = 0; p < std::min(step, n - i); p++) {
      const float* own = reinterpret_cast<const float*>(sums + p * V);
      float* to = out + (i + p) * outputs;
      for (int64_t f = 0; f < count; f++) to[filters[f]] += own[f];
    }
    i += step;
  }
}

void filters_in_registers(const Problem& p) {
  const int64_t all = p.images * p.out_h * p.out_w, threads = at::get_num_threads();
  const int64_t tile = std::min(WIDE_TILE, up(over(all, threads), MANY));
  const std::vector<float> zeros(p.channels, 0.f);
  at::parallel_for(0, over(all, tile), 1, [&](int64_t begin, int64_t end) {
    std::vector<const float*> pixels(tile + MANY, zeros.data());
    for (int64_t t = begin; t < end; t++) {
      const int64_t first = t * tile, n = std::min(tile, all - first);
      float* out = p.out + first * p.outputs;
      for (int64_t i = 0; i < n; i++)
        for (int64_t o = 0; o < p.outputs; o++) out[i * p.outputs + o] = p.start(o);
      int64_t position = -1;
      for (const Block& b : p.blocks) {
        if (b.position != position) {
          position = b.position;
          const int64_t down = position / p.columns_of_kernel * p.dh - p.top;
          const int64_t right = position % p.columns_of_kernel * p.dw - p.left;
          for (int64_t i = 0; i < n; i++) {
            const int64_t at = first + i, image = at / (p.out_h * p.out_w);
            const int64_t h = at / p.out_w % p.out_h * p.sh + down, w = at % p.out_w * p.sw + right;
            const bool inside = h >= 0 && h < p.height && w >= 0 && w < p.width;
            pixels[i] = inside ? p.x + ((image * p.height + h) * p.width + w) * p.channels : zeros.data();
          }
          std::fill(pixels.begin() + n, pixels.end(), zeros.data());
        }
        const auto add = b.filters > LANES ? add_wide<2> : add_wide<1>;
        add(pixels.data(), n, p.weights + b.weights, p.channels, out, p.outputs, p.filters + b.first, b.filters);
      }
    }
  });
}

// ----------------------------------------------------------------------------------------------------------------------

Problem problem(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& blocks, const at::Tensor& filters,
                const std::optional<at::Tensor>& bias, int64_t outputs, at::IntArrayRef kernel, at::IntArrayRef stride,
                at::IntArrayRef padding, at::IntArrayRef dilation) {
  Problem p;
  p.images = x.size(0), p.channels = x.size(1), p.height = x.size(2), p.width = x.size(3), p.outputs = outputs;
  p.sh = stride[0], p.sw = stride[1], p.dh = dilation[0], p.dw = dilation[1], p.top = padding[0], p.left = padding[2];
  p.rows_of_kernel = kernel[0], p.columns_of_kernel = kernel[1];
  p.padded_w = p.width + padding[2] + padding[3];
  p.out_h = (p.height + padding[0] + padding[1] - p.dh * (kernel[0] - 1) - 1) / p.sh + 1;
  p.out_w = (p.padded_w - p.dw * (kernel[1] - 1) - 1) / p.sw + 1;
  p.x = x.const_data_ptr<float>(), p.weights = weights.const_data_ptr<float>();
  p.bias = bias ? bias->const_data_ptr<float>() : nullptr;
  p.filters = filters.const_data_ptr<int64_t>();
  const int64_t* block = blocks.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < blocks.size(0); b++, block += 4) p.blocks.push_back({block[0], block[1], block[2], block[3]});
  return p;
}

// x: (N, C, H, W). weights: for each block (C, filters), flat; in the wide form (C, LANES or 2 * LANES), with zeros.
// blocks: (B, 4), by rising position: the kernel position, how many filters, where they begin in `filters`, where their
// weights do. padding: top, bottom, left, right; may be negative.
at::Tensor stripe_conv2d(const at::Tensor& input, const at::Tensor& weights, const at::Tensor& blocks,
                         const at::Tensor& filters, const std::optional<at::Tensor>& bias, int64_t outputs,
                         at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                         at::IntArrayRef dilation) {
  const at::Tensor x = input.contiguous();
  Problem p = problem(x, weights, blocks, filters, bias, outputs, kernel, stride, padding, dilation);
  at::Tensor result = at::empty({p.images, outputs, p.out_h, p.out_w}, x.options());
  p.out = result.mutable_data_ptr<float>();
  pixels_in_registers(p);
  return result;
}

at::Tensor stripe_conv2d_wide(const at::Tensor& input, const at::Tensor& weights, const at::Tensor& blocks,
                              const at::Tensor& filters, const std::optional<at::Tensor>& bias, int64_t outputs,
                              at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                              at::IntArrayRef dilation) {
  const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
  Problem p = problem(x, weights, blocks, filters, bias, outputs, kernel, stride, padding, dilation);
  at::Tensor result =
      at::empty({p.images, outputs, p.out_h, p.out_w}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
  p.out = result.mutable_data_ptr<float>();
  filters_in_registers(p);
  return result.contiguous(input.suggest_memory_format());
}

int64_t most() { return MOST; }
int64_t lanes() { return LANES; }

}  // namespace

#define STRIPES \
  "(Tensor x, Tensor weights, Tensor blocks, Tensor filters, Tensor? bias, int outputs, int[] kernel, int[] stride, " \
  "int[] padding, int[] dilation) -> Tensor"

TORCH_LIBRARY(secateurs_native, m) {
  m.def("most() -> int", most);
  m.def("lanes() -> int", lanes);
  m.def("stripe_conv2d" STRIPES, stripe_conv2d);
  m.def("stripe_conv2d_wide" STRIPES, stripe_conv2d_wide);
}
