//! Where encoded bytes are: memory with an owner, or a range of an open file.
//!
//! A source never borrows: a transfer may outlive every borrow that a forgotten guard can end. File ranges are read
//! with positioned reads, so a truncated file is an error and never a signal.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;

/// Why bytes could not be had.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The file could not be opened or its size not read.
    #[error("cannot open {path}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// A read failed.
    #[error("cannot read {len} bytes at {offset} of {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Where the read began.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// It cannot be read past the page cache.
    #[error("cannot read {path} past the page cache", path = path.display())]
    NotDirect {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The file is shorter than when it was opened.
    #[error("{path} ended at {end} while bytes {offset} to {wanted_end} were read: it was {opened_len} bytes long when opened", path = path.display(), wanted_end = offset + len)]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where the read began.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Where the file ended.
        end: u64,
        /// Its length when it was opened.
        opened_len: u64,
    },
    /// The bytes were only described.
    #[error(
        "{len} bytes at {offset} are described, not there: a model without data can be planned, not streamed"
    )]
    Described {
        /// Where the read began.
        offset: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// The file was written to since it was opened.
    #[error("{path} changed since it was opened: {opened_len} bytes then, {len} bytes now", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its length when it was opened.
        opened_len: u64,
        /// Its length now.
        len: u64,
    },
}

/// Reads past the page cache begin and end at multiples of this many bytes, in the file and in memory.
pub(crate) const DIRECT_ALIGN: usize = 4096;

/// A file opened for reading, with its name, and its length and time of writing when it was opened.
pub struct SourceFile {
    file: File,
    /// The same file, opened again for reading past the page cache, once that was wanted.
    direct: OnceLock<Result<File, Arc<io::Error>>>,
    path: PathBuf,
    len: u64,
    modified: Option<SystemTime>,
}

impl SourceFile {
    /// Opens `path` for reading.
    ///
    /// # Errors
    /// When it cannot be opened or is no regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>, SourceError> {
        let path = path.as_ref().to_path_buf();
        let fail = |source: io::Error| SourceError::Open {
            path: path.clone(),
            source: Arc::new(source),
        };
        // The kind is asked before opening: opening a FIFO would wait for a writer.
        if !std::fs::metadata(&path).map_err(fail)?.is_file() {
            return Err(fail(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            )));
        }
        let file = File::open(&path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        reads_are_large(&file);
        Ok(Arc::new(Self {
            len: metadata.len(),
            modified: metadata.modified().ok(),
            file,
            direct: OnceLock::new(),
            path,
        }))
    }

    /// The name it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, for reading.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its length in bytes when it was opened.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it was empty when it was opened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fails if length or time of writing differ from those at opening.
    ///
    /// # Errors
    /// [`SourceError::Changed`], or [`SourceError::Open`] when the system does not say.
    pub fn check_unchanged(&self) -> Result<(), SourceError> {
        let metadata = self.file.metadata().map_err(|source| SourceError::Open {
            path: self.path.clone(),
            source: Arc::new(source),
        })?;
        if metadata.len() != self.len || metadata.modified().ok() != self.modified {
            return Err(SourceError::Changed {
                path: self.path.clone(),
                opened_len: self.len,
                len: metadata.len(),
            });
        }
        Ok(())
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// When the file ends before or the system fails.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), SourceError> {
        let wanted = buffer.len();
        self.read_at_least(&self.file, buffer, offset, wanted)
    }

    /// Whether the file can be read past the page cache, by reading a little of it.
    pub(crate) fn check_direct(&self) -> Result<(), SourceError> {
        let mut buffer = vec![0; 2 * DIRECT_ALIGN];
        let len = usize::try_from(self.len).map_or(DIRECT_ALIGN, |len| len.min(DIRECT_ALIGN));
        match self.read_direct_at(&mut buffer, 0, len) {
            Ok(_) => Ok(()),
            Err(SourceError::Read { path, source, .. }) => {
                Err(SourceError::NotDirect { path, source })
            }
            Err(error) => Err(error),
        }
    }

    /// Reads `len` bytes at `offset` past the page cache into `buffer`, and says where in it they begin.
    ///
    /// The buffer has to hold three times [`DIRECT_ALIGN`] more.
    pub(crate) fn read_direct_at(
        &self,
        buffer: &mut [u8],
        offset: u64,
        len: usize,
    ) -> Result<usize, SourceError> {
        let file = self
            .direct
            .get_or_init(|| open_direct(&self.file).map_err(Arc::new));
        let file = file.as_ref().map_err(|source| SourceError::NotDirect {
            path: self.path.clone(),
            source: Arc::clone(source),
        })?;
        let before = usize::try_from(offset % DIRECT_ALIGN as u64).expect("below the alignment");
        let start = buffer.as_ptr().align_offset(DIRECT_ALIGN);
        let wanted = before + len;
        let room = &mut buffer[start..start + wanted.next_multiple_of(DIRECT_ALIGN)];
        self.read_at_least(file, room, offset - before as u64, wanted)?;
        Ok(start + before)
    }

    /// Reads into `buffer` from `offset` on until `wanted` bytes are there.
    fn read_at_least(
        &self,
        file: &File,
        buffer: &mut [u8],
        offset: u64,
        wanted: usize,
    ) -> Result<(), SourceError> {
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            match read_at(file, &mut buffer[done..], at) {
                Ok(0) => {
                    return Err(SourceError::Truncated {
                        path: self.path.clone(),
                        offset,
                        len: wanted as u64,
                        end: at,
                        opened_len: self.len,
                    });
                }
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(SourceError::Read {
                        path: self.path.clone(),
                        offset: at,
                        len: (wanted - done) as u64,
                        source: Arc::new(error),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Tells the system that what is missing from the page cache is to be read at once, as far as each read reaches: reads
/// are of megabytes, and its window of read-ahead would cut them to pieces.
fn reads_are_large(file: &File) {
    #[cfg(target_os = "linux")]
    // Advice: where it is not taken, reads are as right.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Opens the file again, not another that has its name by now.
#[cfg(target_os = "linux")]
fn open_direct(file: &File) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT.bits();
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &File) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

impl fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceFile")
            .field("path", &self.path)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A range of encoded bytes and its owner.
#[derive(Clone)]
pub enum Source {
    /// A range of memory that the source keeps alive. Neighbours in one `memory` are uploaded together.
    Memory {
        /// The memory, shared by all sources in it.
        memory: Arc<Bytes>,
        /// Bytes of it, from its start.
        range: Range<u64>,
    },
    /// A range of an open file.
    File {
        /// The open file.
        file: Arc<SourceFile>,
        /// Bytes of it, from its start.
        range: Range<u64>,
    },
    /// A range of a file that does not exist: enough to plan, and an error to read.
    Described {
        /// Bytes of the imaginary file, from its start.
        range: Range<u64>,
    },
}

impl Source {
    /// Bytes in the range.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory { range, .. } | Self::File { range, .. } | Self::Described { range } => {
                range.end - range.start
            }
        }
    }

    /// Whether the range is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of the range.
    ///
    /// # Panics
    /// When it reaches past the range.
    #[must_use]
    pub fn slice(&self, part: Range<u64>) -> Self {
        assert!(
            part.start <= part.end && part.end <= self.len(),
            "contract: {part:?} lies outside a source of {} bytes",
            self.len()
        );
        let mut source = self.clone();
        let (Self::Memory { range, .. } | Self::File { range, .. } | Self::Described { range }) =
            &mut source;
        *range = range.start + part.start..range.start + part.end;
        source
    }

    /// The bytes, if they are in memory.
    ///
    /// # Panics
    /// When the range reaches past the memory.
    #[must_use]
    pub fn bytes(&self) -> Option<Bytes> {
        let Self::Memory { memory, range } = self else {
            return None;
        };
        let position = |offset| usize::try_from(offset).expect("memory offsets fit usize");
        Some(memory.slice(position(range.start)..position(range.end)))
    }

    /// Reaches on to the end of `next`, which lies behind it in the same file or memory.
    pub(crate) fn extend(&mut self, next: &Self) {
        match (self, next) {
            (Self::File { range, .. }, Self::File { range: next, .. })
            | (Self::Memory { range, .. }, Self::Memory { range: next, .. })
            | (Self::Described { range }, Self::Described { range: next }) => range.end = next.end,
            (this, next) => unreachable!("{this:?} and {next:?} do not lie in one"),
        }
    }

    /// Copies `len` bytes from `offset` of the range of a file past the page cache, to where it then says in `buffer`,
    /// which has to hold three times [`DIRECT_ALIGN`] more.
    pub(crate) fn read_direct(
        &self,
        offset: u64,
        len: usize,
        buffer: &mut [u8],
    ) -> Result<usize, SourceError> {
        let Self::File { file, range } = self else {
            unreachable!("{self:?} is in no file")
        };
        let start = file.read_direct_at(buffer, range.start + offset, len)?;
        file.check_unchanged()?;
        Ok(start)
    }

    /// Copies `buffer.len()` bytes from `offset` of the range. Asks afterwards whether the file is still as it was when it
    /// was opened, so that bytes of a file that is being rewritten are not taken for the model's.
    ///
    /// # Errors
    /// When the file fails or was written to.
    ///
    /// # Panics
    /// When the buffer reaches past the range.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        assert!(
            offset
                .checked_add(buffer.len() as u64)
                .is_some_and(|end| end <= self.len()),
            "contract: {} bytes at {offset} lie outside a source of {} bytes",
            buffer.len(),
            self.len()
        );
        match self {
            Self::Memory { memory, range } => {
                let start = usize::try_from(range.start + offset).expect("memory fits usize");
                buffer.copy_from_slice(&memory[start..start + buffer.len()]);
                Ok(())
            }
            Self::File { file, range } => {
                file.read_exact_at(buffer, range.start + offset)?;
                file.check_unchanged()
            }
            Self::Described { range } => Err(SourceError::Described {
                offset: range.start + offset,
                len: buffer.len() as u64,
            }),
        }
    }
}

impl From<Bytes> for Source {
    fn from(bytes: Bytes) -> Self {
        let range = 0..bytes.len() as u64;
        let memory = Arc::new(bytes);
        Self::Memory { memory, range }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { range, .. } => write!(f, "Memory({range:?})"),
            Self::File { file, range } => write!(f, "File({}, {range:?})", file.path().display()),
            Self::Described { range } => write!(f, "Described({range:?})"),
        }
    }
}
