//! Files that programs read are not to be written over.

use std::error::Error;
use std::fs;
use std::path::Path;

use offload_wan::Checkpoint;

/// Refuses a path that belongs to one of the checkpoints: its files, or what says beside them how they are to be read.
pub(crate) fn refuse_inputs<'a>(
    path: &Path,
    read: impl IntoIterator<Item = &'a Checkpoint>,
) -> Result<(), Box<dyn Error>> {
    for file in read.into_iter().flat_map(Checkpoint::files) {
        if is_same(file.path(), path) || says_how_to_read(path, file.path()) {
            return Err(format!("{} is to be read and written", path.display()).into());
        }
    }
    Ok(())
}

/// Whether `path` is an index or a configuration beside `file`.
fn says_how_to_read(path: &Path, file: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name == "config.json" || name.ends_with(".index.json"))
        && path.exists()
        && is_same(folder(path), folder(file))
}

/// Where a file lies; a name alone lies here.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Whether two names are of one file.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    let places = fs::canonicalize(one).ok().zip(fs::canonicalize(other).ok());
    places.is_some_and(|(one, other)| one == other || is_linked(&one, &other))
}

#[cfg(unix)]
fn is_linked(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    place(one).is_some_and(|one| Some(one) == place(other))
}

#[cfg(not(unix))]
fn is_linked(_: &Path, _: &Path) -> bool {
    false
}
