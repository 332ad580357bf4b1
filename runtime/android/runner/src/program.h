// The operations of a program that no part computes.
#pragma once

#include "job.h"

namespace mtu {

// Computes one instruction that is not a call.
void compute(const Step& step, std::vector<Tensor>& slots);

// 20 log10(max|expected| / rmse), 999 where they are equal; fails with code 5 where it is not finite.
double psnr(const Tensor& expected, const Tensor& actual, const std::string& name);

}  // namespace mtu
