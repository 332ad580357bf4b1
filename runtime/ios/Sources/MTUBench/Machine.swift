import Foundation

#if canImport(Darwin)
  @preconcurrency import Darwin  // mach_task_self_ is a variable of C
#endif

/// This machine: its processor, and the memory of this process.
enum Machine {
  static var current: JobResult.Machine {
    .init(
      arch: arch, cores: ProcessInfo.processInfo.activeProcessorCount,
      pageSize: Int(sysconf(Int32(_SC_PAGESIZE))))
  }

  static var arch: String {
    #if arch(arm64)
      "arm64"
    #elseif arch(x86_64)
      "x86_64"
    #else
      "unknown"
    #endif
  }

  #if canImport(Darwin)
    /// The footprint that the system counts against the app, and what is mapped from files.
    static var memory: JobResult.MemoryReading {
      let info = taskInfo
      return .init(
        anonymous: info.map { Int($0.phys_footprint) }, file: info.map { Int($0.external) },
        peak: nil)
    }

    static var peakMemory: Int? { taskInfo.map { Int($0.ledger_phys_footprint_peak) } }

    private static var taskInfo: task_vm_info_data_t? {
      var info = task_vm_info_data_t()
      let words = MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<integer_t>.size
      var count = mach_msg_type_number_t(words)
      let status = withUnsafeMutablePointer(to: &info) { pointer in
        pointer.withMemoryRebound(to: integer_t.self, capacity: words) {
          task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
        }
      }
      return status == KERN_SUCCESS ? info : nil
    }
  #else
    static var memory: JobResult.MemoryReading {
      .init(anonymous: line("RssAnon"), file: line("RssFile"), peak: nil)
    }

    static var peakMemory: Int? { line("VmHWM") }

    private static func line(_ name: String) -> Int? {
      let text = try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)
      let line = text?.split(separator: "\n").first { $0.hasPrefix("\(name):") }
      let words = line?.split(whereSeparator: \.isWhitespace) ?? []
      return words.count > 1 ? Int(words[1]).map { $0 * 1024 } : nil
    }
  #endif
}
