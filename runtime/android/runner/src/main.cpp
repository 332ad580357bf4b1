// mtu-bench JOB.json -o RESULT.json [--progress]
//
// This process forks a child that opens the engine and works, and listens to it through a pipe. It
// touches neither job nor artefacts, so that whatever happens to the child becomes a result.

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <new>

#include "common.h"
#include "machine.h"
#include "measure.h"

using nlohmann::json;

namespace {

constexpr size_t kLongestLine = 64'000'000;

std::string dump(const json& document, int indent = -1) {
  return document.dump(indent, ' ', false, json::error_handler_t::replace);
}

std::string signal_name(int number) {
  switch (number) {
    case SIGABRT: return "SIGABRT";
    case SIGBUS: return "SIGBUS";
    case SIGFPE: return "SIGFPE";
    case SIGILL: return "SIGILL";
    case SIGSEGV: return "SIGSEGV";
    case SIGSYS: return "SIGSYS";
    case SIGTERM: return "SIGTERM";
    case SIGTRAP: return "SIGTRAP";
    default: return "signal " + std::to_string(number);
  }
}

// ------------------------------------------------------------------------------------ the child

void send(int pipe, const json& event) {
  const std::string words = dump(event) + "\n";
  for (size_t begin = 0; begin < words.size();) {
    const ssize_t count = write(pipe, words.data() + begin, words.size() - begin);
    if (count < 0 && errno != EINTR) _exit(MTU_PART_FAILED);
    begin += count > 0 ? static_cast<size_t>(count) : 0;
  }
}

[[noreturn]] void work(const std::string& job, const std::string& folder, int pipe, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(MTU_PART_FAILED);
  const rlimit no_dump = {0, 0};
  setrlimit(RLIMIT_CORE, &no_dump);
  const size_t slash = job.rfind('/');
  const std::string place = slash == std::string::npos ? "." : job.substr(0, slash + 1);
  mtu::Failure failure{0, ""};
  try {
    if (chdir(place.c_str()) != 0) mtu::fail(mtu::kUsage, place + " is not a folder");
    const std::string name = slash == std::string::npos ? job : job.substr(slash + 1);
    const json result =
        mtu::measure(name, folder, [pipe](const json& event) { send(pipe, event); });
    send(pipe, {{"event", "result"}, {"result", result}});
  } catch (const mtu::Failure& error) {
    failure = error;
  } catch (const std::bad_alloc&) {
    failure = {MTU_PART_FAILED, "out of memory"};
  } catch (const std::exception& error) {
    failure = {MTU_PART_FAILED, std::string("unexpected: ") + error.what()};
  }
  if (failure.code != 0)
    send(pipe, {{"event", "failed"}, {"code", failure.code}, {"reason", failure.reason}});
  _exit(failure.code);
}

// ----------------------------------------------------------------------------------- the parent

class Parent {
 public:
  Parent(pid_t child, int pipe, bool shows_progress)
      : child_(child), pipe_(pipe), shows_progress_(shows_progress) {
    machine_["clocks_khz"] = {{"before", nullptr}, {"after", nullptr}};
    result_ = {{"format", 1},
               {"status", "failed"},
               {"reason", nullptr},
               {"runner",
                {{"name", "mtu-bench"},
                 {"version", MTU_VERSION},
                 {"language", "c++"},
                 {"compiler", MTU_COMPILER},
                 {"libc", mtu::libc_version()}}},
               {"engine", nullptr},
               {"threads", nullptr},
               {"mask", nullptr},
               {"load_s", json::object()},
               {"load_again_s", json::object()},
               {"first_s", nullptr},
               {"samples_s", json::array()},
               {"calls", json::object()},
               {"memory", nullptr},
               {"psnr_db", json::object()}};
  }

  // Listens until the child ends or the deadline passes; returns the exit code.
  int listen() {
    std::string buffer;
    bool is_late = false;
    for (char chunk[65536];;) {
      pollfd waiting = {pipe_, POLLIN, 0};
      const double left = remaining();
      const int ready = poll(&waiting, 1, static_cast<int>(std::min(left, 3600.0) * 1000) + 1);
      if (ready < 0 && errno == EINTR) continue;
      if (left <= 0) is_late = true;
      if (ready == 0 && !is_late) continue;
      const ssize_t count = ready > 0 && !is_late ? read(pipe_, chunk, sizeof chunk) : 0;
      if (count <= 0) break;
      buffer.append(chunk, static_cast<size_t>(count));
      for (size_t end; (end = buffer.find('\n')) != std::string::npos; buffer.erase(0, end + 1))
        take(buffer.substr(0, end));
      if (buffer.size() > kLongestLine) break;
    }
    finish(is_late);
    result_["machine"] = machine_;
    return code_;
  }

  const json& result() const { return result_; }

 private:
  double remaining() const {
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
    return deadline_s_ - spent.count();
  }

  void take(const std::string& words) {
    const json event = json::parse(words, nullptr, false);
    try {
      note(event);
    } catch (const json::exception&) {
      return;  // a child whose memory an engine has damaged
    }
    if (shows_progress_ && event.at("event") != "result")
      std::fprintf(stderr, "%s\n", dump(event).c_str());
  }

  void note(const json& event) {
    const std::string kind = event.at("event");
    if (kind == "job") {
      deadline_s_ = event.at("deadline_s");
    } else if (kind == "engine") {
      result_["engine"] = {{"name", event.at("name")}, {"version", event.at("version")}};
      result_["threads"] = event.at("threads");
      result_["mask"] = event.at("mask");
      machine_.update(event.at("machine"));
    } else if (kind == "loaded" || kind == "loaded again") {
      const std::string part = event.at("part");
      result_[kind == "loaded" ? "load_s" : "load_again_s"][part] = event.at("seconds");
    } else if (kind == "sample") {
      if (event.at("number") == 1) result_["first_s"] = event.at("seconds");
      if (!event.at("warmup")) result_["samples_s"].push_back(event.at("seconds"));
    } else if (kind == "failed") {
      code_ = event.at("code");
      result_["reason"] = mtu::line(event.at("reason"));
    } else if (kind == "result") {
      const json& members = event.at("result");
      machine_["clocks_khz"] = members.at("clocks_khz");
      for (const char* key : {"calls", "memory", "psnr_db"}) result_[key] = members.at(key);
      result_["status"] = "measured";
      code_ = 0;
    }
  }

  void finish(bool is_late) {
    if (is_late) kill(child_, SIGKILL);
    int status = 0;
    while (waitpid(child_, &status, 0) < 0 && errno == EINTR) {
    }
    if (machine_.size() == 1) machine_.update(mtu::machine_now());
    if (result_["status"] == "measured" || !result_["reason"].is_null()) return;
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%g", deadline_s_);
    code_ = MTU_PART_FAILED;
    if (is_late) {
      result_["reason"] = std::string("no result in ") + seconds + " s";
    } else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
      result_["reason"] = "killed, most likely out of memory";
    } else if (WIFSIGNALED(status)) {
      const int number = WTERMSIG(status);
      result_["reason"] =
          "killed by signal " + std::to_string(number) + " (" + signal_name(number) + ")";
    } else {
      result_["reason"] =
          "the engine ended the process with code " + std::to_string(WEXITSTATUS(status));
    }
  }

  pid_t child_;
  int pipe_;
  bool shows_progress_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double deadline_s_ = 600;
  json result_, machine_;
  int code_ = MTU_PART_FAILED;
};

int usage(const char* why) {
  std::fprintf(stderr, "mtu-bench: %s; usage: mtu-bench JOB.json -o RESULT.json [--progress]\n",
               why);
  return mtu::kUsage;
}

bool write_result(const std::string& path, const std::string& words) {
  const std::string scratch = path + ".part";
  std::FILE* file = std::fopen(scratch.c_str(), "w");
  bool is_written = file != nullptr && std::fwrite(words.data(), 1, words.size(), file) == words.size();
  if (file != nullptr) is_written = std::fclose(file) == 0 && is_written;
  if (is_written && std::rename(scratch.c_str(), path.c_str()) == 0) return true;
  std::fprintf(stderr, "mtu-bench: %s cannot be written: %s\n", path.c_str(), std::strerror(errno));
  std::remove(scratch.c_str());
  return false;
}

}  // namespace

int main(int count, char** words) {
  std::string job, output;
  bool shows_progress = false;
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    if (word == "--version") return std::puts("mtu-bench " MTU_VERSION) < 0;
    if (word == "--progress") {
      shows_progress = true;
    } else if (word == "-o" && index + 1 < count) {
      output = words[++index];
    } else if (word.empty() || word[0] == '-' || !job.empty()) {
      return usage(("'" + mtu::line(word) + "' is not expected").c_str());
    } else {
      job = word;
    }
  }
  if (job.empty() || output.empty()) return usage("a job and -o are needed");
  // An old result must not be taken for this one's, and a folder that cannot be written ends it now.
  if (!write_result(output, "") || std::remove(output.c_str()) != 0) return mtu::kUsage;
  const std::string folder = mtu::own_folder(words[0]);
  int ends[2];
  const pid_t parent = getpid();
  if (pipe2(ends, O_CLOEXEC) != 0) return usage("no pipe can be made");
  const pid_t child = fork();
  if (child < 0) return usage("no process can be made");
  if (child == 0) {
    close(ends[0]);
    work(job, folder, ends[1], parent);
  }
  close(ends[1]);
  Parent listener(child, ends[0], shows_progress);
  const int code = listener.listen();
  const json& result = listener.result();
  if (!write_result(output, dump(result, 1) + "\n")) return mtu::kUsage;
  if (code != 0)
    std::fprintf(stderr, "mtu-bench: %s\n", result["reason"].get<std::string>().c_str());
  return code;
}
