//! What tensor names of every format must not be.

/// Whether `name` could be taken for a path that leads out of a folder.
///
/// Nothing here uses names as paths, but programs that unpack tensors to files do.
pub(super) fn reads_as_path(name: &str) -> bool {
    let is_drive = name.as_bytes().get(1) == Some(&b':');
    name.starts_with('/')
        || name.contains('\\')
        || is_drive
        || name.split('/').any(|part| part == "." || part == "..")
}
