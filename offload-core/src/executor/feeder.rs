//! A thread that submits uploads and decodes, and what it has read into staging buffers ahead of them.
//!
//! ```text
//! executor --jobs--> offload-feed --pieces--> offload-read x R --staging buffers--> offload-feed --uploads--> device
//! ```
//!
//! A job is the upload or the decode of one part of a visit. The feeder cuts uploads that are not pinned into chunks of a
//! staging buffer and keeps all buffers reading ahead, over job boundaries; it submits chunks, and what needs no buffer, in
//! order. Reads are bounded by the number of buffers and jobs by the visits of two passes, so a slow device slows the
//! readers. In turns with that it has sources pinned.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, RecvError, RecvTimeoutError, Sender, TryRecvError, bounded};

use crate::device::{Device, DeviceError};
use crate::executor::error::OffloadError;
use crate::executor::pinner::{Asked, Requests};
use crate::executor::readers::{Piece, ReadError, Readers, message_of, spawn};
use crate::executor::transfer::{Job, Transfer};
use crate::plan::Stage;

enum Message<D: Device> {
    Job(Job<D>),
    /// Answered once everything before it is submitted and forgotten.
    Barrier(Sender<()>),
}

/// Part of an upload that fits a staging buffer, being read.
struct Chunk {
    /// Of which message.
    message: u64,
    /// Of its part.
    upload: usize,
    arena_offset: u64,
    len: usize,
    last_of_upload: bool,
}

/// Handle of the feeder's thread. Dropping it ends and joins it, and the readers with it.
#[derive(Debug)]
pub(super) struct Feeder<D: Device> {
    messages: Option<Sender<Message<D>>>,
    thread: Option<JoinHandle<()>>,
}

impl<D: Device> Feeder<D> {
    pub(super) fn start(
        transfer: &Arc<Transfer<D>>,
        readers: Readers<D>,
        jobs_ahead: usize,
        requests: Requests,
    ) -> Result<Self, OffloadError> {
        let (messages, inbox) = bounded(jobs_ahead + 1);
        let transfer = Arc::clone(transfer);
        let work = move || {
            let mut feed = Feed {
                transfer: &transfer,
                requests,
                inbox,
                readers,
                queue: VecDeque::new(),
                front: 0,
                progress: Progress::default(),
                reading: Reading::default(),
                chunks: VecDeque::new(),
                last: None,
                failed: None,
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| feed.run())) {
                transfer.worker_panicked(message_of(&*panic));
            }
        };
        Ok(Self {
            messages: Some(messages),
            thread: Some(spawn("offload-feed", work)?),
        })
    }

    /// Hands a job over. Fails only if the feeder panicked, which the wait for the job's submission then reports.
    pub(super) fn send(&self, job: Job<D>) {
        if let Some(messages) = &self.messages {
            let _ = messages.send(Message::Job(job));
        }
    }

    /// Waits until every job sent is submitted or dropped.
    pub(super) fn drain(&self) {
        let (reply, answer) = bounded(1);
        if let Some(messages) = &self.messages
            && messages.send(Message::Barrier(reply)).is_ok()
        {
            let _ = answer.recv();
        }
    }
}

impl<D: Device> Drop for Feeder<D> {
    fn drop(&mut self) {
        self.messages = None;
        // Panics were caught on the thread and reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Makes a panic of `submit`, which calls into the device, an error of its job.
fn guarded<T>(submit: impl FnOnce() -> Result<T, OffloadError>) -> Result<T, OffloadError> {
    catch_unwind(AssertUnwindSafe(submit)).unwrap_or_else(|panic| {
        Err(OffloadError::WorkerPanicked {
            message: message_of(&*panic),
        })
    })
}

struct Failure {
    epoch: u64,
    pass: u64,
    visit: usize,
    error: OffloadError,
}

/// How far the job in front is submitted.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    begun: bool,
    /// So many uploads of its part.
    uploads: usize,
}

/// What is read next: a message, an upload of its part, and a byte of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Reading {
    message: u64,
    upload: usize,
    byte: u64,
}

struct Feed<'a, D: Device> {
    transfer: &'a Transfer<D>,
    requests: Requests,
    inbox: Receiver<Message<D>>,
    readers: Readers<D>,
    /// What is not worked off yet.
    queue: VecDeque<Message<D>>,
    /// The number of the first of them. Messages are counted.
    front: u64,
    progress: Progress,
    /// What lies before it was read, or pinned by then.
    reading: Reading,
    /// What is being read, oldest first.
    chunks: VecDeque<Chunk>,
    /// Kind, pass and visit of the last upload that was asked for.
    last: Option<(usize, u64, usize)>,
    /// The first arrival that failed, and why. Later ones of its epoch may depend on it; earlier ones do not.
    failed: Option<Failure>,
}

impl<D: Device> Feed<'_, D> {
    fn run(&mut self) {
        loop {
            let closed = loop {
                match self.inbox.try_recv() {
                    Ok(message) => self.push(message),
                    Err(error) => break error == TryRecvError::Disconnected,
                }
            };
            self.read_ahead();
            self.submit_ready();
            let asked = match closed {
                true => Asked::Nothing,
                false => self.pin_next(),
            };
            let waits = !self.chunks.is_empty();
            if waits && (asked != Asked::One || self.readers.is_next_filled()) {
                self.finish_chunk();
            } else if self.queue.is_empty() && asked != Asked::One {
                let message = match asked {
                    Asked::After(rest) => self.inbox.recv_timeout(rest),
                    Asked::One | Asked::Nothing => self.inbox.recv().map_err(RecvError::into),
                };
                match message {
                    Ok(message) => self.push(message),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    /// Takes a message.
    fn push(&mut self, message: Message<D>) {
        if let Message::Job(job) = &message
            && job.stage == Stage::Upload
        {
            self.last = Some((job.kind, job.pass, job.visit));
        }
        self.queue.push_back(message);
    }

    /// The message of a number, if it is not worked off yet.
    fn message(&self, number: u64) -> Option<&Message<D>> {
        let index = number.checked_sub(self.front)?;
        self.queue.get(usize::try_from(index).ok()?)
    }

    /// Has a source pinned that nobody reads yet, if there is one, or another.
    fn pin_next(&mut self) -> Asked {
        let Reading {
            message,
            upload,
            byte,
        } = self.reading;
        let (kind, pass, from) = match (self.message(message), self.last) {
            (Some(Message::Job(job)), _) if job.stage == Stage::Upload => {
                let uploads = &self.transfer.visit_program(job).parts[job.part].uploads;
                let position = uploads.start + upload + usize::from(byte > 0);
                (job.kind, job.pass, (job.visit, position))
            }
            (_, Some((kind, pass, visit))) => (kind, pass, (visit + 1, 0)),
            (_, None) => return Asked::Nothing,
        };
        self.requests.pin_next(self.transfer, kind, pass, from)
    }

    /// Submits what stands in front and waits for no reader.
    fn submit_ready(&mut self) {
        while let Some(message) = self.queue.front() {
            if let Message::Job(job) = message
                && self.is_wanted(job)
            {
                let mut progress = self.progress;
                let submitted = guarded(|| {
                    let submitted = self.advance(job, &mut progress);
                    submitted.map_err(|error| self.of_block(job, error))
                });
                match submitted {
                    Ok(true) => {}
                    Ok(false) => {
                        self.progress = progress;
                        return;
                    }
                    Err(error) => self.failed = Some(Self::failure_of(job, error)),
                }
            }
            match self.queue.pop_front() {
                Some(Message::Job(job)) => self.settle(&job),
                Some(Message::Barrier(reply)) => {
                    let _ = reply.send(());
                }
                None => unreachable!("just seen"),
            }
            self.front += 1;
            self.progress = Progress::default();
        }
    }

    /// Submits of the job in front what waits for no reader. Returns whether that was the rest of it.
    fn advance(&self, job: &Job<D>, progress: &mut Progress) -> Result<bool, DeviceError> {
        let transfer = self.transfer;
        if job.stage != Stage::Upload {
            transfer.submit(job)?;
            return Ok(true);
        }
        let uploads = transfer.visit_program(job).uploads_of(job.part);
        let left = &uploads[progress.uploads..self.being_read().unwrap_or(uploads.len())];
        let pinned = left.iter().take_while(|upload| upload.is_pinned()).count();
        if pinned > 0 {
            self.begin(job, progress)?;
            transfer.upload_pinned(job, &left[..pinned])?;
            progress.uploads += pinned;
        }
        if progress.uploads < uploads.len() {
            return Ok(false);
        }
        self.begin(job, progress)?;
        transfer.end_upload(job)?;
        Ok(true)
    }

    /// Submits what comes before the uploads of the job in front, once.
    fn begin(&self, job: &Job<D>, progress: &mut Progress) -> Result<(), DeviceError> {
        if !progress.begun {
            self.transfer.begin_upload(job)?;
            progress.begun = true;
        }
        Ok(())
    }

    /// The first upload of the job in front of which some is read.
    fn being_read(&self) -> Option<usize> {
        // Older ones are of jobs that were given up, or submitted.
        let chunk = self.chunks.iter().find(|chunk| chunk.message >= self.front);
        let oldest = chunk.map(|chunk| (chunk.message, chunk.upload));
        let Reading {
            message,
            upload,
            byte,
        } = self.reading;
        let begun = (byte > 0).then_some((message, upload));
        let (message, upload) = oldest.or(begun)?;
        (message == self.front).then_some(upload)
    }

    /// Whether the job is of the current epoch, and depends on nothing that failed. Once false it stays so.
    fn is_wanted(&self, job: &Job<D>) -> bool {
        job.epoch == self.transfer.epoch.load(Ordering::Acquire) && self.failure(job).is_none()
    }

    fn failure(&self, job: &Job<D>) -> Option<&OffloadError> {
        let concerns = |failed: &&Failure| {
            failed.epoch == job.epoch && (failed.pass, failed.visit) <= (job.pass, job.visit)
        };
        self.failed
            .as_ref()
            .filter(concerns)
            .map(|failed| &failed.error)
    }

    fn failure_of(job: &Job<D>, error: OffloadError) -> Failure {
        Failure {
            epoch: job.epoch,
            pass: job.pass,
            visit: job.visit,
            error,
        }
    }

    fn settle(&self, job: &Job<D>) {
        self.transfer.settle(
            job,
            self.failure(job).map_or(Ok(()), |error| Err(error.clone())),
        );
    }

    fn of_block(&self, job: &Job<D>, error: DeviceError) -> OffloadError {
        OffloadError::of_block(self.transfer.block_name(job.kind, job.visit), error)
    }

    fn read_ahead(&mut self) {
        while self.readers.are_free() {
            let Some((piece, chunk)) = self.next_chunk() else {
                return;
            };
            self.readers.read(piece);
            self.chunks.push_back(chunk);
        }
    }

    /// The next chunk to be read, over the boundaries of messages.
    fn next_chunk(&mut self) -> Option<(Piece, Chunk)> {
        // What was pinned before it was its turn to be read may be submitted by now.
        let submitted = Reading {
            message: self.front,
            upload: self.progress.uploads,
            byte: 0,
        };
        let mut at = self.reading.max(submitted);
        let (job, upload) = loop {
            self.reading = at;
            match self.message(at.message)? {
                // Passes may be abandoned faster than their bytes can be read: what is left of one is not.
                Message::Job(job) if job.stage == Stage::Upload && self.is_wanted(job) => {
                    let uploads = self.transfer.visit_program(job).uploads_of(job.part);
                    match uploads.get(at.upload) {
                        Some(upload) if at.byte > 0 || !upload.is_pinned() => break (job, upload),
                        Some(_) => {
                            at.upload += 1;
                            continue;
                        }
                        None => {}
                    }
                }
                Message::Job(_) | Message::Barrier(_) => {}
            }
            at = Reading {
                message: at.message + 1,
                ..Reading::default()
            };
        };
        let left = upload.source.len() - at.byte;
        let len = self.readers.piece_len(left, upload.past_cache);
        let last_of_upload = len as u64 == left;
        let piece = Piece {
            epoch: job.epoch,
            source: upload.source.clone(),
            offset: at.byte,
            len,
            past_cache: upload.past_cache,
        };
        let chunk = Chunk {
            message: at.message,
            upload: at.upload,
            arena_offset: upload.offset + at.byte,
            len,
            last_of_upload,
        };
        self.reading = match last_of_upload {
            true => Reading {
                upload: at.upload + 1,
                byte: 0,
                ..at
            },
            false => Reading {
                byte: at.byte + len as u64,
                ..at
            },
        };
        Some((piece, chunk))
    }

    /// Waits for a chunk being read, and submits it if it is the oldest.
    fn finish_chunk(&mut self) {
        let Some((mut staging, result)) = self.readers.next() else {
            return;
        };
        let chunk = self.chunks.pop_front().expect("one each");
        // Else its job was given up.
        if let Some(Message::Job(job)) = self.message(chunk.message)
            && self.is_wanted(job)
        {
            let mut progress = self.progress;
            let submitted =
                guarded(|| self.submit(job, &chunk, &mut progress, &mut staging, result));
            if let Err(error) = submitted {
                self.failed = Some(Self::failure_of(job, error));
            }
            self.progress = progress;
        }
        self.readers.give_back(staging);
    }

    /// Submits a chunk of the job in front.
    fn submit(
        &self,
        job: &Job<D>,
        chunk: &Chunk,
        progress: &mut Progress,
        staging: &mut D::Staging,
        filled: Result<usize, ReadError>,
    ) -> Result<(), OffloadError> {
        let transfer = self.transfer;
        let block = transfer.block_name(job.kind, job.visit);
        let begin = filled.map_err(|error| error.of_block(block))?;
        let mut submit = || {
            self.begin(job, progress)?;
            let (stream, arena) = (&transfer.upload, &job.loaded.arena);
            let source = begin..begin + chunk.len;
            let device = &transfer.device;
            device.upload_staged(stream, arena, chunk.arena_offset, staging, source)?;
            transfer.count(job, chunk.len);
            progress.uploads += usize::from(chunk.last_of_upload);
            Ok(())
        };
        submit().map_err(|error| self.of_block(job, error))
    }
}
