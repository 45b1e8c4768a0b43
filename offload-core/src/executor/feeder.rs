//! A thread that submits uploads and decodes, and what it has read into staging buffers ahead of them.
//!
//! ```text
//! executor --jobs--> offload-feed --pieces--> offload-read x R --staging buffers--> offload-feed --uploads--> device
//! ```
//!
//! A job is the upload or the decode of one visit. The feeder cuts uploads into chunks of a staging buffer and keeps all
//! buffers reading ahead, over job boundaries; it submits chunks, and the jobs that need no buffer, in order. Reads are
//! bounded by the number of buffers and jobs by the visits of two passes, so a slow device slows the readers.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::device::{Device, DeviceError};
use crate::executor::error::OffloadError;
use crate::executor::pinner::Requests;
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
    arena_offset: u64,
    len: usize,
    last_of_job: bool,
    first_of_job: bool,
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
                jobs: VecDeque::new(),
                next: (0, 0, 0),
                chunks: VecDeque::new(),
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
fn guarded(submit: impl FnOnce() -> Result<(), OffloadError>) -> Result<(), OffloadError> {
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

/// How a message is worked off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// It has no chunks to be read.
    Submit,
    /// It has.
    Read,
    /// It has, unless its sources can be pinned: tried when it stands in front.
    Pin,
}

/// A message, and how it is worked off.
struct Queued<D: Device> {
    message: Message<D>,
    how: How,
}

struct Feed<'a, D: Device> {
    transfer: &'a Transfer<D>,
    requests: Requests,
    inbox: Receiver<Message<D>>,
    readers: Readers<D>,
    /// Jobs not yet submitted; the front is being submitted.
    jobs: VecDeque<Queued<D>>,
    /// Where reading stands: index in `jobs`, upload, bytes of it.
    next: (usize, usize, u64),
    /// What is being read, oldest first.
    chunks: VecDeque<Chunk>,
    /// The first arrival that failed, and why. Later ones of its epoch may depend on it; earlier ones do not.
    failed: Option<Failure>,
}

impl<D: Device> Feed<'_, D> {
    fn run(&mut self) {
        loop {
            while let Ok(message) = self.inbox.try_recv() {
                self.push(message);
            }
            self.read_ahead();
            // Before a chunk is finished, so that the chunk is of the job in front.
            self.pass_front();
            if !self.chunks.is_empty() {
                self.finish_chunk();
            } else if self.jobs.is_empty() {
                match self.inbox.recv() {
                    Ok(message) => self.push(message),
                    Err(_) => return,
                }
            }
        }
    }

    /// Takes a message.
    fn push(&mut self, message: Message<D>) {
        let how = match &message {
            Message::Job(job) if job.stage == Stage::Upload => {
                if self.transfer.visit_program(job).is_part_pinned(job.part) {
                    How::Submit
                } else if self.requests.is_open(self.transfer, job) {
                    How::Pin
                } else {
                    How::Read
                }
            }
            Message::Job(_) | Message::Barrier(_) => How::Submit,
        };
        self.jobs.push_back(Queued { message, how });
    }

    /// Decides how the front is worked off, if that is still open.
    fn decide_front(&mut self) {
        let Some(Queued {
            message: Message::Job(job),
            how: How::Pin,
        }) = self.jobs.front()
        else {
            return;
        };
        let how = if self.is_wanted(job) {
            self.requests.pin(self.transfer, job);
            match self.transfer.visit_program(job).is_part_pinned(job.part) {
                true => How::Submit,
                false => How::Read,
            }
        } else {
            How::Submit // where it is dropped
        };
        self.jobs[0].how = how;
    }

    /// Works off what stands in front and needs no staging buffer.
    fn pass_front(&mut self) {
        loop {
            self.decide_front();
            if (self.jobs.front()).is_none_or(|queued| queued.how != How::Submit) {
                return;
            }
            self.next.0 = self.next.0.saturating_sub(1);
            match self.jobs.pop_front().map(|queued| queued.message) {
                Some(Message::Barrier(reply)) => {
                    let _ = reply.send(());
                }
                Some(Message::Job(job)) => {
                    if self.is_wanted(&job) {
                        let submit = || {
                            let submitted = self.transfer.submit(&job);
                            submitted.map_err(|error| self.of_block(&job, error))
                        };
                        if let Err(error) = guarded(submit) {
                            self.failed = Some(Self::failure_of(&job, error));
                        }
                    }
                    self.settle(&job);
                }
                None => unreachable!("just seen"),
            }
        }
    }

    /// Whether the job is of the current epoch, and depends on nothing that failed.
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

    /// The next chunk to be read, over job boundaries.
    fn next_chunk(&mut self) -> Option<(Piece, Chunk)> {
        let (mut index, mut upload_index, mut done) = self.next;
        let job = loop {
            let Queued { message, how } = self.jobs.get(index)?;
            match (message, how) {
                (_, How::Pin) => return None,
                (Message::Job(job), How::Read) if self.is_wanted(job) => break job,
                (_, How::Submit) => index += 1,
                (_, How::Read) => {
                    // Passes may be abandoned faster than their bytes can be read: what is left of it is not.
                    let begun = (upload_index, done) != (0, 0);
                    match self.chunks.back_mut() {
                        // Its last one, since chunks are read in order.
                        Some(chunk) if begun => chunk.last_of_job = true,
                        _ => self.jobs[index].how = How::Submit, // where it is dropped
                    }
                    (index, upload_index, done) = (index + 1, 0, 0);
                    self.next = (index, upload_index, done);
                }
            }
        };
        let uploads = self.transfer.visit_program(job).uploads_of(job.part);
        let staged = |from: usize| {
            let later = uploads.iter().enumerate().skip(from);
            later
                .filter(|(_, upload)| !upload.fixed)
                .map(|(at, _)| at)
                .next()
        };
        let first_of_job = (upload_index, done) == (0, 0);
        if done == 0 {
            upload_index = staged(upload_index).expect("a job that is read has an upload left");
        }
        let upload = &uploads[upload_index];
        let (source, offset) = (&upload.source, upload.offset);
        let left = source.len() - done;
        let len = self.readers.piece_len(left, upload.past_cache);
        let ends_upload = len as u64 == left;
        let last_of_job = ends_upload && staged(upload_index + 1).is_none();
        let piece = Piece {
            epoch: job.epoch,
            source: source.clone(),
            offset: done,
            len,
            past_cache: upload.past_cache,
        };
        let chunk = Chunk {
            arena_offset: offset + done,
            len,
            first_of_job,
            last_of_job,
        };
        if last_of_job {
            (index, upload_index, done) = (index + 1, 0, 0);
        } else if ends_upload {
            (upload_index, done) = (upload_index + 1, 0);
        } else {
            done += len as u64;
        }
        self.next = (index, upload_index, done);
        Some((piece, chunk))
    }

    /// Waits for a chunk being read, and submits it if it is the oldest.
    fn finish_chunk(&mut self) {
        let Some((mut staging, result)) = self.readers.next() else {
            return;
        };
        let chunk = self.chunks.pop_front().expect("one each");
        let Some(Message::Job(job)) = self.jobs.front().map(|queued| &queued.message) else {
            unreachable!("a chunk belongs to the job in front")
        };
        if self.is_wanted(job) {
            let outcome = guarded(|| self.submit(job, &chunk, &mut staging, result));
            if let Err(error) = outcome {
                self.failed = Some(Self::failure_of(job, error));
            }
        }
        self.readers.give_back(staging);
        if chunk.last_of_job {
            let Some(Message::Job(job)) = self.jobs.pop_front().map(|queued| queued.message) else {
                unreachable!("just seen")
            };
            self.next.0 = self.next.0.saturating_sub(1);
            self.settle(&job);
        }
    }

    fn submit(
        &self,
        job: &Job<D>,
        chunk: &Chunk,
        staging: &mut D::Staging,
        filled: Result<usize, ReadError>,
    ) -> Result<(), OffloadError> {
        let transfer = self.transfer;
        let block = transfer.block_name(job.kind, job.visit);
        let begin = filled.map_err(|error| error.of_block(block))?;
        let mut submit = || {
            if chunk.first_of_job {
                transfer.begin_upload(job)?;
                transfer.upload_pinned(job, true)?;
            }
            let (stream, arena) = (&transfer.upload, &job.loaded.arena);
            transfer.device.upload_staged(
                stream,
                arena,
                chunk.arena_offset,
                staging,
                begin..begin + chunk.len,
            )?;
            transfer.count(job, chunk.len);
            if chunk.last_of_job {
                transfer.end_upload(job)
            } else {
                Ok(())
            }
        };
        let submitted: Result<(), DeviceError> = submit();
        submitted.map_err(|error| self.of_block(job, error))
    }
}
