import Foundation

/// The sha256 of an artefact as rule 6 of the contract makes it: of a file, or of a folder.
///
/// Throws `Broken` for what holds anything but plain files and folders, and `CancellationError`.
package func artefactSHA256(_ url: URL) throws -> String {
  try BundleFiles(url.deletingLastPathComponent()).hash(url.lastPathComponent)
}

extension ModelBundle {
  /// The sha256 of each part: the names of compiled models.
  public var partHashes: Set<String> {
    Set(manifest.parts.map(\.file.sha256))
  }
}
