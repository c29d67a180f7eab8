// The images of a batch in a register: no register is filled in part, however small the maps, and what a position would
// read outside of them is not computed. Images are transposed on the way in and out, of either memory format.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "registers.h"

namespace {

typedef int32_t ints __attribute__((vector_size(LANES * sizeof(int32_t))));

#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, ints{__VA_ARGS__})
#endif

// Swaps the squares of S by S values beside the diagonal, then larger ones.
template <int S, int... I>
inline void transpose(vec* rows, std::integer_sequence<int, I...> lanes) {
  if constexpr (S < LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & S)) {
        const vec a = rows[i], b = rows[i + S];
        rows[i] = PICK(a, b, (I & S ? I - S + LANES : I)...);
        rows[i + S] = PICK(a, b, (I & S ? I + LANES : I + S)...);
      }
    transpose<2 * S>(rows, lanes);
  }
}

// to[j][i] = from[i][j] for i < n, j < m, both at most LANES. `whole` values of each row are written, beyond n zeros.
void transpose(const float* from, int64_t row, int64_t n, int64_t m, float* to, int64_t to_row, int64_t whole) {
  vec rows[LANES] = {};
  if (n == LANES && m == LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) rows[i] = *reinterpret_cast<const vec*>(from + i * row);
  } else {
    for (int64_t i = 0; i < n; i++) std::memcpy(rows + i, from + i * row, m * sizeof(float));
  }
  transpose<1>(rows, std::make_integer_sequence<int, LANES>());
  if (whole == LANES && m == LANES) {
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++) *reinterpret_cast<vec*>(to + j * to_row) = rows[j];
  } else {
    for (int64_t j = 0; j < m; j++) std::memcpy(to + j * to_row, rows + j, whole * sizeof(float));
  }
}

constexpr int64_t IMAGES_BAND = 1 << 20;  // values of the input that are worked on at a time
constexpr int64_t IMAGES_TILE = 2 * LANES;  // pixels of the output that stay in cache

// A band of rows of LANES images: a vector is a pixel's value in one channel, in all of them. Pixels come one after the
// other, each with its channels, and what lies outside of the images is skipped.
void images_in_registers(const Problem& p) {
  const int64_t groups = over(p.images, LANES), size = p.height * p.width, out_size = p.out_h * p.out_w;
  const int64_t image = p.channels * size, out_image = p.outputs * out_size;
  const int64_t pixel = (p.channels + 1) * LANES, out_pixel = (p.outputs + 1) * LANES;  // one more: no powers of two
  const int64_t below = p.dh * (p.rows_of_kernel - 1), fits = (IMAGES_BAND / (pixel * p.width) - below) / p.sh;
  const int64_t bands = over(p.out_h, std::clamp<int64_t>(fits, 1, over(groups * p.out_h, at::get_num_threads())));
  const int64_t most = over(p.out_h, bands);
  at::parallel_for(0, groups * bands, 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> in_memory, out_memory;
    float* const in = buffer(in_memory, ((most - 1) * p.sh + below + 1) * p.width * pixel);
    float* const sums = buffer(out_memory, IMAGES_TILE * out_pixel);
    int64_t from[IMAGES_TILE], to[IMAGES_TILE];
    for (int64_t i = begin; i < end; i++) {
      const int64_t first_image = i / bands * LANES, images = std::min<int64_t>(LANES, p.images - first_image);
      const int64_t first = std::min(i % bands * most, p.out_h), last = std::min(first + most, p.out_h);
      const int64_t top = std::clamp<int64_t>(first * p.sh - p.top, 0, p.height);  // the first row that is read
      const int64_t bottom = std::clamp<int64_t>((last - 1) * p.sh - p.top + below + 1, top, p.height);
      const int64_t pixels = (bottom - top) * p.width;
      const float* const x = p.x + first_image * image;
      float* const out = p.out + first_image * out_image;
      if (p.channels_last)
        for (int64_t j = 0; j < pixels; j++)
          for (int64_t c = 0; c < p.channels; c += LANES)
            transpose(x + (top * p.width + j) * p.channels + c, image, images,
                      std::min<int64_t>(LANES, p.channels - c), in + j * pixel + c * LANES, LANES, LANES);
      else
        for (int64_t c = 0; c < p.channels; c++)
          for (int64_t j = 0; j < pixels; j += LANES)
            transpose(x + c * size + top * p.width + j, image, images, std::min<int64_t>(LANES, pixels - j),
                      in + j * pixel + c * LANES, pixel, LANES);
      for (int64_t t = first * p.out_w; t < last * p.out_w; t += IMAGES_TILE) {
        const int64_t n = std::min(IMAGES_TILE, last * p.out_w - t);
        for (int64_t j = 0; j < n; j++)
          for (int64_t o = 0; o < p.outputs; o++) set(sums + j * out_pixel + o * LANES, p.start(o));
        int64_t position = -1, inside = 0;
        for (const Block& b : p.blocks) {
          if (b.position != position) {
            position = b.position, inside = 0;
            for (int64_t j = 0; j < n; j++)
              if (const int64_t at = p.reads(t + j, position); at >= 0)
                from[inside] = (at - top * p.width) * pixel, to[inside++] = j * out_pixel;
          }
          ADD_TILE[b.filters](in, LANES, p.channels, from, p.weights + b.weights, sums, LANES, to, p.filters + b.first,
                              inside);
        }
        if (p.out_channels_last)
          for (int64_t j = 0; j < n; j++)
            for (int64_t o = 0; o < p.outputs; o += LANES) {
              const int64_t m = std::min<int64_t>(LANES, p.outputs - o);
              transpose(sums + j * out_pixel + o * LANES, LANES, m, images, out + (t + j) * p.outputs + o, out_image,
                        m);
            }
        else
          for (int64_t o = 0; o < p.outputs; o++)
            for (int64_t j = 0; j < n; j += LANES) {
              const int64_t m = std::min<int64_t>(LANES, n - j);
              transpose(sums + j * out_pixel + o * LANES, out_pixel, m, images, out + o * out_size + t + j, out_image,
                        m);
            }
      }
    }
  });
}

}  // namespace
