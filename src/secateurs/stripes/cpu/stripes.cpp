// The stripe convolution on a CPU, in float32.
//
// out[o] = sum over o's kept positions p, over channels c, of weight[o, p, c] * x[c] shifted by p.
//
// A filter keeps its own positions, so the whole is not a matrix product. But one position is, over the filters that keep
// it. A tile of output pixels stays in cache while all positions add to it, and a block of filters by a few pixels stays
// in registers while all channels do. There are three ways to fill a register: with neighboring pixels, with the images
// of a batch, or with filters.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>

#include "filters.h"
#include "images.h"
#include "pixels.h"

namespace {

// fill: what registers are filled with, "pixels", "images" or "filters". x: (N, C, H, W). weights: for each block (C,
// filters), flat; for "filters" (C, LANES or 2 * LANES), with zeros. blocks: (B, 4), by rising position: the kernel
// position, how many filters, where they begin in `filters`, where their weights do. padding: top, bottom, left, right;
// may be negative. The output has the input's memory format, or is channels_last if that is asked for.
at::Tensor stripe_conv2d(c10::string_view fill, const at::Tensor& input, const at::Tensor& weights,
                         const at::Tensor& blocks, const at::Tensor& filters, const std::optional<at::Tensor>& bias,
                         int64_t outputs, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                         at::IntArrayRef dilation, bool channels_last) {
  constexpr auto LAST = at::MemoryFormat::ChannelsLast, FIRST = at::MemoryFormat::Contiguous;
  const auto given = input.suggest_memory_format(), wanted = channels_last ? LAST : given;
  const bool images = fill == "images";
  const auto own = fill == "filters" ? LAST : FIRST;  // the format for the other two
  const at::Tensor x = input.contiguous(images ? given : own);

  Problem p;
  p.images = x.size(0), p.channels = x.size(1), p.height = x.size(2), p.width = x.size(3), p.outputs = outputs;
  p.sh = stride[0], p.sw = stride[1], p.dh = dilation[0], p.dw = dilation[1], p.top = padding[0], p.left = padding[2];
  p.rows_of_kernel = kernel[0], p.columns_of_kernel = kernel[1];
  p.padded_w = p.width + padding[2] + padding[3];
  p.out_h = (p.height + padding[0] + padding[1] - p.dh * (kernel[0] - 1) - 1) / p.sh + 1;
  p.out_w = (p.padded_w - p.dw * (kernel[1] - 1) - 1) / p.sw + 1;
  TORCH_CHECK(p.out_h > 0 && p.out_w > 0, "the output of this input would be empty: ", p.out_h, "x", p.out_w);
  p.x = x.const_data_ptr<float>(), p.weights = weights.const_data_ptr<float>();
  p.bias = bias ? bias->const_data_ptr<float>() : nullptr;
  p.filters = filters.const_data_ptr<int64_t>();
  p.channels_last = given == LAST, p.out_channels_last = wanted == LAST;
  const int64_t* block = blocks.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < blocks.size(0); b++, block += 4) p.blocks.push_back({block[0], block[1], block[2], block[3]});

  at::Tensor result =
      at::empty({p.images, outputs, p.out_h, p.out_w}, x.options().memory_format(images ? wanted : own));
  p.out = result.mutable_data_ptr<float>();
  (images ? images_in_registers : own == LAST ? filters_in_registers : pixels_in_registers)(p);
  return result.contiguous(wanted);
}

int64_t most() { return MOST; }
int64_t lanes() { return LANES; }

}  // namespace

TORCH_LIBRARY(secateurs_native, m) {
  m.def("most() -> int", most);
  m.def("lanes() -> int", lanes);
  m.def(
      "stripe_conv2d(str fill, Tensor x, Tensor weights, Tensor blocks, Tensor filters, Tensor? bias, int outputs, "
      "int[] kernel, int[] stride, int[] padding, int[] dilation, bool channels_last) -> Tensor",
      stripe_conv2d);
}
