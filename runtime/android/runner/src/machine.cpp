#include "machine.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tensors.h"

namespace mtu {
namespace {

// A field of /proc/self/status in bytes.
json status(const std::string& field) {
  std::ifstream file("/proc/self/status");
  uint64_t kilobytes = 0;
  for (std::string words; std::getline(file, words);)
    if (words.rfind(field + ":", 0) == 0 &&
        std::istringstream(words.substr(field.size() + 1)) >> kilobytes)
      return kilobytes * 1024;
  return nullptr;
}

template <typename Value>
json cpu_file(int cpu, const std::string& name) {
  std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/cpufreq/" + name);
  Value value;
  return file >> value ? json(value) : json();
}

cpu_set_t allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  return set;
}

// The allowed CPUs of the highest clock; all of them where none is readable.
cpu_set_t big_cpus() {
  cpu_set_t set = allowed(), fastest;
  CPU_ZERO(&fastest);
  json best;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &set)) continue;
    const json clock = cpu_file<uint64_t>(cpu, "cpuinfo_max_freq");
    if (clock > best) CPU_ZERO(&fastest);
    best = std::max(best, clock);
    if (clock == best) CPU_SET(cpu, &fastest);
  }
  return fastest;
}

cpu_set_t cpus_of_mask(const std::string& digits) {
  if (digits.size() > CPU_SETSIZE / 4 ||
      digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
    fail(MTU_BAD_JOB, "cpus: all, big or a hexadecimal mask is needed");
  cpu_set_t set;
  CPU_ZERO(&set);
  for (size_t cpu = 0; cpu < 4 * digits.size(); ++cpu)
    if (std::stoi(digits.substr(digits.size() - 1 - cpu / 4, 1), nullptr, 16) >> cpu % 4 & 1)
      CPU_SET(cpu, &set);
  return set;
}

}  // namespace

json memory_now() {
  return {{"anonymous", status("RssAnon")}, {"file", status("RssFile")}, {"peak", status("VmHWM")}};
}

bool reset_peak() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  return static_cast<bool>(file);
}

int use_cpus(const std::string& cpus) {
  if (cpus != "all") {
    const cpu_set_t set = cpus == "big" ? big_cpus() : cpus_of_mask(cpus);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
      fail(MTU_BAD_JOB, "cpus: mask " + cpus + " has no CPU that this process may use");
  }
  const cpu_set_t set = allowed();
  return CPU_COUNT(&set);
}

std::string mask_now() {
  const cpu_set_t set = allowed();
  std::string digits;
  for (int cpu = CPU_SETSIZE - 4; cpu >= 0; cpu -= 4) {
    int value = 0;
    for (int bit = 0; bit < 4; ++bit) value |= CPU_ISSET(cpu + bit, &set) ? 1 << bit : 0;
    if (value != 0 || !digits.empty()) digits += "0123456789abcdef"[value];
  }
  return digits.empty() ? "0" : digits;
}

json clocks_now() {
  json clocks = json::array();
  for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_CONF); ++cpu) {
    clocks.push_back(cpu_file<uint64_t>(cpu, "scaling_cur_freq"));
    if (clocks.back().is_null()) return nullptr;
  }
  return clocks;
}

json machine_now() {
  utsname names = {};
  uname(&names);
  const cpu_set_t set = allowed();
  int first = 0;
  while (first < CPU_SETSIZE - 1 && !CPU_ISSET(first, &set)) ++first;
  return {{"arch", names.machine},
          {"cores", sysconf(_SC_NPROCESSORS_ONLN)},
          {"page_size", sysconf(_SC_PAGESIZE)},
          {"governor", cpu_file<std::string>(first, "scaling_governor")}};
}

std::string libc_version() {
#ifdef __GLIBC__
  return std::string("glibc ") + gnu_get_libc_version();
#else
  return "bionic";
#endif
}

std::string own_folder() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
}

}  // namespace mtu
