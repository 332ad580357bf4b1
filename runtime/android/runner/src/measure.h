// The child's work: one job, from its file to its result.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

namespace mtu {

// Takes {"event": ...}: what the parent must know even if this process is killed afterwards.
using Report = std::function<void(const nlohmann::json&)>;

// Runs the job whose folder is the working directory; plugins lie in `folder`. Returns the members
// of a result that `report` has not told: see Parent in main.cpp. Throws Failure.
nlohmann::json measure(const std::string& job, const std::string& folder, const Report& report);

}  // namespace mtu
