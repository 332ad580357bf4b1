import Foundation

/// A check of a file that failed, before it is known which rule it belongs to.
package struct Broken: Error, Equatable, LocalizedError {
  package let reason: String

  package init(reason: String) {
    self.reason = reason
  }

  package var errorDescription: String? { reason }
}

package func require(_ condition: Bool, _ reason: @autoclosure () -> String) throws {
  if !condition { throw Broken(reason: reason()) }
}

func requireRequest(_ condition: Bool, _ reason: @autoclosure () -> String) throws {
  if !condition { throw MTUError.requestRefused(reason()) }
}

/// What `check` returns; what it throws becomes a refusal by this rule, but for an `MTUError` and
/// a `CancellationError`.
func underRule<Result>(_ rule: Int, _ check: () throws -> Result) throws -> Result {
  do {
    return try check()
  } catch let error as Broken {
    throw MTUError.bundleRefused(rule: rule, reason: printable(error.reason))
  } catch let error where error is MTUError || error is CancellationError {
    throw error
  } catch {
    throw MTUError.bundleRefused(rule: rule, reason: printable(firstLine(error)))
  }
}

/// The first line of an error's text, at most 300 characters.
package func firstLine(_ error: any Error) -> String {
  let text = (error as? any LocalizedError)?.errorDescription ?? "\(error)"
  let line = text.split(whereSeparator: \.isNewline).first ?? "no reason given"
  return String(line.prefix(300))
}

/// Text of somebody else's in which no terminal finds more than text.
func printable(_ text: String) -> String {
  var plain = String.UnicodeScalarView()
  for scalar in text.unicodeScalars {
    plain.append((0x20...0x7e).contains(scalar.value) ? scalar : "?")
  }
  return String(plain)
}

/// A text of somebody else's file, quoted: one printable piece of at most 80 characters.
package func shown(_ text: String) -> String {
  var plain = "\""
  for scalar in text.unicodeScalars {
    if plain.utf8.count > 80 { return plain.prefix(76) + " ..." }
    let isPlain = (0x20...0x7e).contains(scalar.value)
    plain.unicodeScalars.append(isPlain ? scalar : "?")
  }
  return plain + "\""
}
