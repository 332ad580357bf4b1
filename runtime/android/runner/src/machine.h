// What the runner reads from its machine, and the CPUs that it runs on. Unknown values are null.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace mtu {

using nlohmann::json;

// Resident {"anonymous", "file", "peak"} in bytes; `peak` since a `reset_peak` that succeeded.
json memory_now();
bool reset_peak();

// Applies "all", "big" or a hexadecimal mask and returns the number of CPUs; fails with code 2.
int use_cpus(const std::string& cpus);
std::string mask_now();

json clocks_now();   // of each core, in kHz
json machine_now();  // {"arch", "cores", "page_size", "governor"}
std::string libc_version();

// The folder of the runner, or of its loader, which lies beside it, where that was started by name.
std::string own_folder();

}  // namespace mtu
