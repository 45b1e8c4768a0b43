//! Files that programs write: never over what they read, and known to be writable before hours of work.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use offload_wan::Checkpoint;

use crate::inputs::{is_same, refuse_inputs};

/// A file that is written when the work is done. What it holds stays until then.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    file: File,
    /// It was made here, and nothing was written to it: it goes when this is dropped.
    is_left: bool,
}

impl Output {
    /// Opens a file, or makes it.
    ///
    /// # Errors
    /// When it belongs to one of the checkpoints, is one of the other outputs, or cannot be written.
    pub(crate) fn open<'a>(
        path: &Path,
        read: impl IntoIterator<Item = &'a Checkpoint>,
        written: &[&Self],
    ) -> Result<Self, Box<dyn Error>> {
        refuse_inputs(path, read)?;
        if written.iter().any(|other| is_same(&other.path, path)) {
            return Err(format!("{} is to be written twice", path.display()).into());
        }
        let is_left = !path.exists();
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(path);
        Ok(Self {
            file: file.map_err(|error| format!("{}: {error}", path.display()))?,
            path: path.to_path_buf(),
            is_left,
        })
    }

    /// Replaces what the file holds.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
        let written = self.replace(bytes);
        self.is_left &= written.is_err();
        written.map_err(|error| format!("{}: {error}", self.path.display()).into())
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Pipes and devices have nothing to be replaced.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
            self.file.rewind()?;
        }
        self.file.write_all(bytes)?;
        self.file.flush()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.is_left {
            // Nobody is told of an empty file that stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}
