//! A cursor over a file's header.

use std::path::PathBuf;
use std::sync::Arc;

use crate::source::SourceFile;

use super::rules::MAX_HEADER_BYTES;
use super::{Flaw, GgufError};

/// Bytes read at a time.
const WINDOW_BYTES: u64 = 64 << 10;

/// Reads forward through the first bytes of a file, a window at a time.
///
/// Every length is compared with the bytes that are left before anything is allocated or read.
pub(super) struct Header {
    file: Arc<SourceFile>,
    /// The next byte to be read.
    position: u64,
    /// The end of the file, or the limit if that comes before.
    end: u64,
    window: Vec<u8>,
    window_begin: u64,
}

impl Header {
    pub(super) fn new(file: Arc<SourceFile>) -> Self {
        Self {
            position: 0,
            end: file.len().min(MAX_HEADER_BYTES),
            window: Vec::new(),
            window_begin: 0,
            file,
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.file.path().to_path_buf()
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes that a header may still have.
    pub(super) fn room(&self) -> u64 {
        self.end.saturating_sub(self.position)
    }

    /// Fails unless `len` more bytes are there.
    pub(super) fn require(&self, what: &'static str, len: u64) -> Result<(), GgufError> {
        if len <= self.room() {
            return Ok(());
        }
        let (path, offset, file_len) = (self.path(), self.position, self.file.len());
        Err(if self.end < file_len {
            GgufError::HeaderTooLong {
                path,
                what,
                offset,
                needed: len,
                limit: self.end,
            }
        } else {
            GgufError::Truncated {
                path,
                what,
                offset,
                needed: len,
                file_len,
            }
        })
    }

    /// Passes over `len` bytes.
    pub(super) fn skip(&mut self, what: &'static str, len: u64) -> Result<(), GgufError> {
        self.require(what, len)?;
        self.position = self.position.saturating_add(len);
        Ok(())
    }

    /// The next bytes.
    pub(super) fn bytes<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    /// The length of a string of at most `limit` bytes, all of which are there.
    pub(super) fn string_len(&mut self, what: &'static str, limit: u64) -> Result<u64, GgufError> {
        let begin = self.position;
        let len = self.u64(what)?;
        if len > limit {
            return Err(self.flaw_at(begin, Flaw::StringLength { what, len, limit }));
        }
        self.require(what, len)?;
        Ok(len)
    }

    /// A string of at most `limit` bytes.
    pub(super) fn string(&mut self, what: &'static str, limit: u64) -> Result<String, GgufError> {
        let begin = self.position;
        let len = self.string_len(what, limit)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        self.fill(what, &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.flaw_at(begin, Flaw::NotUtf8 { what }))
    }

    /// A rule broken by the entry that begins at `offset`.
    pub(super) fn flaw_at(&self, offset: u64, flaw: Flaw) -> GgufError {
        GgufError::Malformed {
            path: self.path(),
            offset,
            flaw,
        }
    }

    fn fill(&mut self, what: &'static str, mut buffer: &mut [u8]) -> Result<(), GgufError> {
        self.require(what, buffer.len() as u64)?;
        while !buffer.is_empty() {
            let ahead = self.ahead()?;
            let len = ahead.len().min(buffer.len());
            let (now, later) = buffer.split_at_mut(len);
            now.copy_from_slice(ahead.split_at(len).0);
            self.position = self.position.saturating_add(len as u64);
            buffer = later;
        }
        Ok(())
    }

    /// Bytes of the window from the position on; at least one, if the header has one.
    fn ahead(&mut self) -> Result<&[u8], GgufError> {
        if !self.window_range().contains(&self.position) {
            let len = self.room().min(WINDOW_BYTES);
            self.window
                .resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
            self.window_begin = self.position;
            self.file
                .read_exact_at(&mut self.window, self.window_begin)?;
        }
        let passed = self.position.saturating_sub(self.window_begin);
        let passed = usize::try_from(passed).unwrap_or(usize::MAX);
        Ok(self.window.get(passed..).unwrap_or_default())
    }

    fn window_range(&self) -> std::ops::Range<u64> {
        self.window_begin..self.window_begin.saturating_add(self.window.len() as u64)
    }
}
