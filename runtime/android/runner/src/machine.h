// What the runner reads from its machine, and the CPUs that it runs on.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace mtu {

// Resident memory of this process: {"anonymous", "file", "peak"} in bytes, each null where unknown.
// `peak` is that since `reset_peak` returned true.
nlohmann::json memory_now(bool has_peak);
// VmHWM in bytes, or null.
nlohmann::json highest_memory();
// Lets the peak begin anew; false where the system refuses.
bool reset_peak();

// Applies "all", "big" or a hexadecimal mask; fails with code 2. Returns the number of CPUs.
int use_cpus(const std::string& cpus);
// The mask that this process runs on, in hexadecimal.
std::string mask_now();

// Clock of each core in kHz, or null.
nlohmann::json clocks_now();
// {"arch", "cores", "page_size", "governor"}
nlohmann::json machine_now();
std::string libc_version();
// The folder of the runner's own file, also where its loader was started by name.
std::string own_folder(const char* program);

}  // namespace mtu
