#include "program.h"

#include <algorithm>
#include <cmath>

namespace mtu {

namespace {

void sum(const Step& step, std::vector<Tensor>& slots) {
  float* out = slots[step.out[0]].floats();
  const size_t count = slots[step.out[0]].words.size();
  for (size_t index = 0; index < count; ++index) {
    double total = 0;
    for (size_t term = 0; term < step.in.size(); ++term)
      total += step.factors[term] * static_cast<double>(slots[step.in[term]].floats()[index]);
    out[index] = static_cast<float>(total);
  }
}

void concat(const Step& step, std::vector<Tensor>& slots) {
  Tensor& out = slots[step.out[0]];
  size_t rows = 1;
  for (size_t axis = 0; axis < step.axis; ++axis)
    rows *= static_cast<size_t>(out.form.shape[axis]);
  const size_t stride = out.words.size() / rows;
  size_t begin = 0;
  for (size_t slot : step.in) {
    const size_t width = slots[slot].words.size() / rows;
    for (size_t row = 0; row < rows; ++row)
      std::copy_n(slots[slot].words.data() + row * width, width,
                  out.words.data() + row * stride + begin);
    begin += width;
  }
}

}  // namespace

void compute(const Step& step, std::vector<Tensor>& slots) {
  if (step.op == Step::Op::sum) return sum(step, slots);
  if (step.op == Step::Op::concat) return concat(step, slots);
  const Tensor& in = slots[step.in[0]];
  Tensor& out = slots[step.out[0]];
  const size_t count = out.words.size();
  if (step.op == Step::Op::slice) {
    std::copy_n(in.words.data() + static_cast<size_t>(step.begin) * count, count, out.words.data());
  } else if (step.op == Step::Op::scale) {
    for (size_t index = 0; index < count; ++index)
      out.floats()[index] = in.floats()[index] * step.by;
  } else {
    for (size_t index = 0; index < count; ++index)
      out.floats()[index] = in.floats()[index] / step.by;
  }
}

double psnr(const Tensor& expected, const Tensor& actual, const std::string& name) {
  double peak = 0, squares = 0;
  for (size_t index = 0; index < expected.words.size(); ++index) {
    const double reference = expected.floats()[index];
    const double error = reference - static_cast<double>(actual.floats()[index]);
    peak = std::max(peak, std::abs(reference));
    squares += error * error;
  }
  if (squares == 0) return 999.0;
  const double rmse = std::sqrt(squares / static_cast<double>(expected.words.size()));
  const double decibels = 20 * std::log10(peak / rmse);
  if (!std::isfinite(decibels))
    fail(MTU_PART_FAILED, "register " + name + " is not finite, or is compared with zeros");
  return decibels;
}

}  // namespace mtu
