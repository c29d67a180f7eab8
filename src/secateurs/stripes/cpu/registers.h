// Shared by all three ways to fill a register: the problem, and blocks of filters by vectors of pixels in registers.
#pragma once

#include <cstdint>
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
  // All loops over registers are unrolled; otherwise their values would go through memory.
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

// `add_block` for n vectors, a few at a time.
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

// Reused from call to call: to allocate memory would cost more than the work that is done in it.
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
  bool channels_last, out_channels_last;
  std::vector<Block> blocks;

  float start(int64_t o) const { return bias ? bias[o] : 0.f; }

  // The pixel that an output reads at a position of the kernel, -1 if it lies outside.
  int64_t reads(int64_t pixel, int64_t position) const {
    const int64_t h = pixel / out_w * sh + position / columns_of_kernel * dh - top;
    const int64_t w = pixel % out_w * sw + position % columns_of_kernel * dw - left;
    return h >= 0 && h < height && w >= 0 && w < width ? h * width + w : -1;
  }
};

void set(float* to, float value) { *reinterpret_cast<vec*>(to) = vec{} + value; }

}  // namespace
