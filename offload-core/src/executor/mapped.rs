#![expect(unsafe_code, reason = "maps files")]
//! Files that are mapped, to be copied from there to staging buffers rather than read into them.
//!
//! The system copies what is read with the care that memory of other programs needs; from a mapping it is copied as
//! any memory is. Each piece is brought in first, which fails where the file has been cut off. Between that and the copy
//! a file that is cut off takes its pages with it, and touching them is a signal: hence the promise that is asked of
//! whoever wants this.

use std::sync::Arc;

use memmap2::{Mmap, MmapOptions};

use crate::source::{Source, SourceError, SourceFile};

/// The mapped files of a model.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    files: Vec<(Arc<SourceFile>, Mmap)>,
}

impl Mappings {
    /// Maps files. What cannot be mapped is left out, and noted.
    ///
    /// Called only for whoever promised, by [`copy_from_mappings`](super::OffloadBuilder::copy_from_mappings), that no
    /// file is written to or made shorter.
    pub(super) fn new(files: &[Arc<SourceFile>], notes: &mut Vec<String>) -> Self {
        let map = |file: &Arc<SourceFile>| {
            let mut options = MmapOptions::new();
            options.len(usize::try_from(file.len()).unwrap_or(usize::MAX));
            // SAFETY: by the promise above the bytes neither change nor go.
            match unsafe { options.map(file.file()) } {
                Ok(mapping) => Some((Arc::clone(file), mapping)),
                Err(error) => {
                    notes.push(format!("{} is read: {error}", file.path().display()));
                    None
                }
            }
        };
        Self {
            files: files.iter().filter_map(map).collect(),
        }
    }

    /// As [`Source::read`], from the mapping if there is one and the bytes can be brought in.
    pub(super) fn read(
        &self,
        source: &Source,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), SourceError> {
        let Some(bytes) = self.bytes(source, offset, buffer.len()) else {
            return source.read(offset, buffer);
        };
        buffer.copy_from_slice(bytes);
        match source {
            Source::File { file, .. } => file.check_unchanged(),
            Source::Memory { .. } | Source::Described { .. } => Ok(()),
        }
    }

    /// The bytes where they are mapped, brought in.
    #[cfg(target_os = "linux")]
    fn bytes(&self, source: &Source, offset: u64, len: usize) -> Option<&[u8]> {
        let Source::File { file, range } = source else {
            return None;
        };
        let (_, mapping) = (self.files.iter()).find(|(mapped, _)| Arc::ptr_eq(mapped, file))?;
        let begin = usize::try_from(range.start + offset).ok()?;
        let bytes = mapping.get(begin..begin.checked_add(len)?)?;
        let brought = mapping.advise_range(memmap2::Advice::PopulateRead, begin, len);
        brought.is_ok().then_some(bytes)
    }

    #[cfg(not(target_os = "linux"))]
    fn bytes(&self, _: &Source, _: u64, _: usize) -> Option<&[u8]> {
        None
    }
}
