#if canImport(SwiftUI) && canImport(UIKit)
  import MTUBench
  import UIKit
  import os

  /// This phone, for the record.
  @MainActor
  enum Phone {
    static var device: BenchDevice {
      var system = utsname()
      uname(&system)
      let machine = withUnsafeBytes(of: &system.machine) { bytes in
        String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      let environment = ProcessInfo.processInfo.environment
      let simulated = environment["SIMULATOR_MODEL_IDENTIFIER"]
      return BenchDevice(
        model: simulated ?? machine,
        os: "\(UIDevice.current.systemName) \(UIDevice.current.systemVersion) (\(build))",
        memory: Int(ProcessInfo.processInfo.physicalMemory), emulated: simulated != nil)
    }

    static var state: BenchState {
      UIDevice.current.isBatteryMonitoringEnabled = true
      let level = Double(UIDevice.current.batteryLevel)
      let thermal =
        switch ProcessInfo.processInfo.thermalState {
        case .nominal: 0
        case .fair: 1
        case .serious: 3
        case .critical: 4
        @unknown default: 4
        }
      let charging: Bool? =
        switch UIDevice.current.batteryState {
        case .charging, .full: true
        case .unplugged: false
        default: nil
        }
      return BenchState(
        thermalStatus: thermal, battery: level < 0 ? nil : level, charging: charging,
        freeMemory: Int(os_proc_available_memory()))
    }

    private static var build: String {
      var size = 0
      sysctlbyname("kern.osversion", nil, &size, nil, 0)
      var bytes = [UInt8](repeating: 0, count: max(size, 1))
      sysctlbyname("kern.osversion", &bytes, &size, nil, 0)
      return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
    }
  }
#endif
