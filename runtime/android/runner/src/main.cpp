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

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <new>

#include "job.h"
#include "machine.h"

namespace mtu {
namespace {

std::string dump(const json& document, int indent = -1) {
  return document.dump(indent, ' ', false, json::error_handler_t::replace);
}

// One printable line of at most 600 bytes.
std::string one_line(std::string words) {
  words.resize(std::min<size_t>(words.size(), 600));
  for (char& letter : words)
    if (static_cast<unsigned char>(letter) < 32 || letter == 127) letter = ' ';
  words.erase(words.find_last_not_of(' ') + 1);
  return words;
}

void tell(int pipe, const json& event) {
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
  Failure failure{0, ""};
  try {
    if (chdir(place.c_str()) != 0) fail(MTU_BAD_JOB, place + " is not a folder");
    const auto report = [pipe](const json& event) { tell(pipe, event); };
    const json members = measure(job.substr(slash + 1), folder, report);
    tell(pipe, {{"event", "result"}, {"result", members}});
  } catch (const Failure& error) {
    failure = error;
  } catch (const std::bad_alloc&) {
    failure = {MTU_PART_FAILED, "out of memory"};
  } catch (const std::exception& error) {
    failure = {MTU_PART_FAILED, std::string("unexpected: ") + error.what()};
  }
  if (failure.code != 0)
    tell(pipe, {{"event", "failed"}, {"code", failure.code}, {"reason", one_line(failure.reason)}});
  _exit(failure.code);
}

class Parent {
 public:
  Parent(pid_t child, int pipe, bool shows_progress)
      : child_(child), pipe_(pipe), shows_progress_(shows_progress) {}

  // Listens until the child ends or the deadline passes; returns the exit code.
  int listen() {
    std::string buffer;
    bool is_late = false;
    for (char chunk[65536];;) {
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
      const double left = deadline_s_ - spent.count();
      is_late = left <= 0;
      if (is_late) break;
      pollfd waiting = {pipe_, POLLIN, 0};
      if (poll(&waiting, 1, static_cast<int>(std::min(left, 3600.0) * 1000) + 1) <= 0) continue;
      const ssize_t count = read(pipe_, chunk, sizeof chunk);
      if (count <= 0) break;
      buffer.append(chunk, static_cast<size_t>(count));
      for (size_t end; (end = buffer.find('\n')) != std::string::npos; buffer.erase(0, end + 1)) {
        try {
          note(json::parse(buffer.substr(0, end)));
        } catch (const json::exception&) {
          continue;  // the engine has damaged the child's memory
        }
      }
    }
    int status = 0;
    for (int waited = 0; waitpid(child_, &status, WNOHANG) == 0; ++waited) {
      if (is_late || waited == 1000) kill(child_, SIGKILL);  // 10 s after it has closed the pipe
      usleep(10'000);
    }
    if (code_ < 0) result_["reason"] = death(is_late, status);
    if (machine_.size() == 1) machine_.update(machine_now());
    result_["machine"] = machine_;
    return code_ < 0 ? MTU_PART_FAILED : code_;
  }

  const json& result() const { return result_; }

 private:
  void note(const json& event) {
    const std::string kind = event.at("event");
    if (shows_progress_ && kind != "result") std::fprintf(stderr, "%s\n", dump(event).c_str());
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
      result_["reason"] = event.at("reason");
      code_ = event.at("code");
    } else if (kind == "result") {
      json members = event.at("result");
      machine_["clocks_khz"] = members.at("clocks_khz");
      members.erase("clocks_khz");
      result_.update(members);
      result_["status"] = "measured";
      code_ = 0;
    }
  }

  std::string death(bool is_late, int status) const {
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%g", deadline_s_);
    if (is_late) return std::string("no result in ") + seconds + " s";
    if (!WIFSIGNALED(status))
      return "the engine ended the process with code " + std::to_string(WEXITSTATUS(status));
    const int number = WTERMSIG(status);
    if (number == SIGKILL) return "killed, most likely out of memory";
    std::string name = strsignal(number);
#ifdef __GLIBC__
    if (const char* letters = sigabbrev_np(number)) name = std::string("SIG") + letters;
#endif
    return "killed by signal " + std::to_string(number) + " (" + name + ")";
  }

  pid_t child_;
  int pipe_;
  bool shows_progress_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double deadline_s_ = 600;
  int code_ = -1;
  json machine_ = {{"clocks_khz", {{"before", nullptr}, {"after", nullptr}}}};
  const json runner_ = {{"name", "mtu-bench"}, {"version", MTU_VERSION}, {"language", "c++"},
                        {"compiler", MTU_COMPILER}, {"libc", libc_version()}};
  json result_ = {{"format", 1}, {"status", "failed"}, {"reason", nullptr}, {"runner", runner_},
                  {"engine", nullptr}, {"threads", nullptr}, {"mask", nullptr},
                  {"load_s", json::object()}, {"load_again_s", json::object()},
                  {"first_s", nullptr}, {"samples_s", json::array()}, {"calls", json::object()},
                  {"memory", nullptr}, {"psnr_db", json::object()}};
};

int refuse(const std::string& why) {
  std::fprintf(stderr, "mtu-bench: %s\n", one_line(why).c_str());
  return MTU_BAD_JOB;
}

int run(const std::string& job, const std::string& output, bool shows_progress) {
  std::error_code error;
  const bool is_there = std::filesystem::exists(output, error);
  if ((is_there && !std::filesystem::is_regular_file(output, error)) ||
      std::filesystem::equivalent(job, output, error))
    return refuse(output + " is the job, or no plain file");
  // An old result must not be taken for this one's; a folder that cannot be written ends it now.
  if (!replace_file(output, "") || std::remove(output.c_str()) != 0)
    return refuse(output + " cannot be written");
  int ends[2];
  const pid_t parent = getpid();
  if (pipe2(ends, O_CLOEXEC) != 0) return refuse("no pipe can be made");
  const pid_t child = fork();
  if (child < 0) return refuse("no process can be made");
  if (child == 0) work(job, own_folder(), ends[1], parent);
  close(ends[1]);
  Parent listener(child, ends[0], shows_progress);
  const int code = listener.listen();
  if (!replace_file(output, dump(listener.result(), 1) + "\n"))
    return refuse(output + " cannot be written");
  if (code != 0) refuse(listener.result().at("reason"));
  return code;
}

}  // namespace
}  // namespace mtu

int main(int count, char** words) {
  std::string job, output;
  bool shows_progress = false;
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    if (word == "--progress") {
      shows_progress = true;
    } else if (word == "-o" && index + 1 < count) {
      output = words[++index];
    } else if (word.empty() || word[0] == '-' || !job.empty()) {
      return mtu::refuse("'" + word + "' is not expected");
    } else {
      job = word;
    }
  }
  if (job.empty() || output.empty())
    return mtu::refuse("a job and -o are needed: mtu-bench JOB.json -o RESULT.json [--progress]");
  return mtu::run(job, output, shows_progress);
}
