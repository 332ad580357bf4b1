#include "machine.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "common.h"

namespace mtu {

using nlohmann::json;

namespace {

// A field of /proc/self/status in bytes, or null.
json status(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string words; std::getline(file, words);)
    if (words.rfind(field + ":", 0) == 0) {
      std::istringstream values(words.substr(field.size() + 1));
      uint64_t kilobytes = 0;
      if (values >> kilobytes) return kilobytes * 1024;
    }
  return nullptr;
}

std::string cpu_file(int cpu, const std::string& name) {
  std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/cpufreq/" + name);
  std::string words;
  std::getline(file, words);
  return words;
}

// A whole number of kHz, or -1.
long clock(int cpu, const std::string& name) {
  std::istringstream words(cpu_file(cpu, name));
  long kilohertz = -1;
  return words >> kilohertz && kilohertz >= 0 ? kilohertz : -1;
}

cpu_set_t allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  return set;
}

cpu_set_t big() {
  cpu_set_t set = allowed(), fastest;
  CPU_ZERO(&fastest);
  long best = -1;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &set)) continue;
    const long speed = clock(cpu, "cpuinfo_max_freq");
    if (speed > best) CPU_ZERO(&fastest);
    best = std::max(best, speed);
    if (speed == best) CPU_SET(cpu, &fastest);
  }
  return fastest;
}

cpu_set_t parse(const std::string& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const std::string digits = cpus.rfind("0x", 0) == 0 ? cpus.substr(2) : cpus;
  if (digits.empty() || digits.size() > CPU_SETSIZE / 4 ||
      digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
    fail(kUsage, "cpus: all, big or a hexadecimal mask is needed");
  for (size_t index = 0; index < digits.size(); ++index) {
    const int value = std::stoi(digits.substr(digits.size() - 1 - index, 1), nullptr, 16);
    for (int bit = 0; bit < 4; ++bit)
      if (value >> bit & 1) CPU_SET(static_cast<int>(4 * index) + bit, &set);
  }
  return set;
}

}  // namespace

json memory_now(bool has_peak) {
  return {{"anonymous", status("RssAnon")},
          {"file", status("RssFile")},
          {"peak", has_peak ? status("VmHWM") : json()}};
}

json highest_memory() { return status("VmHWM"); }

bool reset_peak() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  return static_cast<bool>(file);
}

int use_cpus(const std::string& cpus) {
  if (cpus != "all") {
    const cpu_set_t set = cpus == "big" ? big() : parse(cpus);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
      fail(kUsage, "cpus: mask " + cpus + " has no CPU that this process may use");
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
  const long cores = sysconf(_SC_NPROCESSORS_CONF);
  for (int cpu = 0; cpu < cores; ++cpu) {
    const long kilohertz = clock(cpu, "scaling_cur_freq");
    if (kilohertz < 0) return nullptr;
    clocks.push_back(kilohertz);
  }
  return clocks;
}

json machine_now() {
  utsname names = {};
  uname(&names);
  const cpu_set_t set = allowed();
  int first = 0;
  while (first < CPU_SETSIZE - 1 && !CPU_ISSET(first, &set)) ++first;
  const std::string governor = cpu_file(first, "scaling_governor");
  return {{"arch", names.machine},
          {"cores", sysconf(_SC_NPROCESSORS_ONLN)},
          {"page_size", sysconf(_SC_PAGESIZE)},
          {"governor", governor.empty() ? json() : json(governor)}};
}

std::string libc_version() {
#ifdef __GLIBC__
  return std::string("glibc ") + gnu_get_libc_version();
#else
  return "bionic";
#endif
}

std::string own_folder(const char* program) {
  // /proc/self/exe is the loader where the loader was started by name; the map has our file.
  const auto own = reinterpret_cast<uintptr_t>(&own_folder);
  std::string path = program;
  std::ifstream file("/proc/self/maps");
  for (std::string words; std::getline(file, words);) {
    uintptr_t begin = 0, end = 0;
    char dash = 0;
    std::istringstream range(words);
    range >> std::hex >> begin >> dash >> end;
    const size_t slash = words.find('/');
    if (range && begin <= own && own < end && slash != std::string::npos) path = words.substr(slash);
  }
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

}  // namespace mtu
