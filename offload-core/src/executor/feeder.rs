//! Worker threads that read sources into staging buffers and submit their uploads.
//!
//! ```text
//! executor --jobs--> offload-feed --reads--> offload-read x R --filled--> offload-feed --uploads--> device
//! ```
//!
//! A job is the upload or the decode of one visit. The feeder cuts uploads into chunks of a staging buffer and keeps all
//! buffers reading ahead, over job boundaries; it submits chunks, and the jobs that need no buffer, in order. A buffer
//! returns to the readers with its copy still under way: the reader that fills it next waits for that, and the oldest
//! copy is taken first. Reads are bounded by the number of buffers and jobs by the visits of two passes, so a slow device
//! slows the readers.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::device::{Device, DeviceError};
use crate::executor::error::OffloadError;
use crate::executor::mapped::Mappings;
use crate::executor::pinner::Requests;
use crate::executor::transfer::{Job, Transfer};
use crate::plan::Stage;
use crate::source::{DIRECT_ALIGN, Source, SourceError};

/// Buffers between the readers and the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagingBuffers {
    /// How many, with a reader for each up to the number of processors and 12. Default: 16, so that as many readers as
    /// it takes to keep up with the wire are busy while others are copied.
    pub count: usize,
    /// Bytes of each. Default: 8 MiB, where uploads one after another reach the rate of the wire.
    pub bytes: usize,
}

impl Default for StagingBuffers {
    fn default() -> Self {
        Self {
            count: 16,
            bytes: 8 << 20,
        }
    }
}

/// More do not read faster from the page cache.
const READERS: usize = 12;

/// Makes the buffers on several threads: most of the time is the system's, which zeroes pages.
fn allocate<D: Device>(
    device: &D,
    count: usize,
    bytes: usize,
    threads: usize,
) -> Result<Vec<D::Staging>, DeviceError> {
    let share = |thread: usize| (thread..count).step_by(threads);
    let make = |thread: usize| -> Result<Vec<D::Staging>, DeviceError> {
        share(thread)
            .map(|_| device.allocate_staging(bytes))
            .collect()
    };
    std::thread::scope(|scope| {
        let mut others = Vec::new();
        // This thread's share, and what the system makes no thread for.
        let mut own = vec![0];
        for thread in 1..threads {
            let work = move || make(thread);
            match std::thread::Builder::new().spawn_scoped(scope, work) {
                Ok(other) => others.push(other),
                Err(_) => own.push(thread),
            }
        }
        let made: Result<Vec<_>, _> = own.into_iter().map(make).collect();
        let mut buffers = made.map(|made| made.into_iter().flatten().collect::<Vec<_>>());
        for other in others {
            // A panic of the device is the caller's.
            let made = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            buffers = buffers.and_then(|mut buffers| {
                buffers.append(&mut made?);
                Ok(buffers)
            });
        }
        buffers
    })
}

enum Message<D: Device> {
    Job(Job<D>),
    /// Answered once everything before it is submitted and forgotten.
    Barrier(Sender<()>),
}

/// Part of an upload that fits a staging buffer.
#[derive(Clone)]
struct Chunk {
    source: Source,
    source_offset: u64,
    arena_offset: u64,
    len: usize,
    past_cache: bool,
    last_of_job: bool,
    first_of_job: bool,
}

struct Read<D: Device> {
    ordinal: u64,
    /// Nothing is read for an epoch that has ended.
    epoch: u64,
    chunk: Chunk,
    staging: D::Staging,
}

enum ReadError {
    Source(SourceError),
    Device(DeviceError),
    Panic(String),
}

struct Filled<D: Device> {
    ordinal: u64,
    chunk: Chunk,
    staging: D::Staging,
    /// Where in `staging` its bytes begin.
    result: Result<usize, ReadError>,
}

/// Handle of the worker threads. Dropping it ends and joins them.
#[derive(Debug)]
pub(super) struct Feeder<D: Device> {
    messages: Option<Sender<Message<D>>>,
    threads: Vec<JoinHandle<()>>,
}

impl<D: Device> Feeder<D> {
    pub(super) fn start(
        transfer: &Arc<Transfer<D>>,
        buffers: StagingBuffers,
        jobs_ahead: usize,
        mappings: Mappings,
        requests: Requests,
    ) -> Result<Self, OffloadError> {
        let device = &transfer.device;
        let count = buffers.count.max(1);
        let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
        let readers = count.min(parallelism).min(READERS);
        let staging = allocate(device, count, buffers.bytes.max(1), readers)?;
        let (messages, inbox) = bounded(jobs_ahead + 1);
        // Made before the channels between the threads: if one cannot be spawned, the channels are closed first, and the
        // threads that were spawned end when the feeder joins them.
        let mut feeder = Self {
            messages: Some(messages),
            threads: Vec::new(),
        };
        let (reads, to_read) = bounded::<Read<D>>(count);
        let (filled, from_readers) = bounded::<Filled<D>>(count);
        let mappings = Arc::new(mappings);
        for _ in 0..readers {
            let (transfer, mappings) = (Arc::clone(transfer), Arc::clone(&mappings));
            let (to_read, filled) = (to_read.clone(), filled.clone());
            let work = move || read(&transfer, &mappings, &to_read, &filled);
            feeder.spawn("offload-read", work)?;
        }
        drop((filled, mappings));
        let transfer = Arc::clone(transfer);
        feeder.spawn("offload-feed", move || {
            let mut feed = Feed {
                transfer: &transfer,
                requests,
                inbox,
                reads,
                filled: from_readers,
                idle: staging.into(),
                buffer_bytes: buffers.bytes.max(1),
                jobs: VecDeque::new(),
                next: (0, 0, 0),
                started: 0,
                finished: 0,
                early: Vec::new(),
                failed: None,
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| feed.run())) {
                transfer.worker_panicked(message_of(&*panic));
            }
        })?;
        Ok(feeder)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), OffloadError> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map_err(|error| {
                OffloadError::Device(DeviceError::Failed {
                    call: "spawn",
                    reason: error.to_string(),
                })
            })?;
        self.threads.push(thread);
        Ok(())
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
        for thread in self.threads.drain(..) {
            // Panics were caught on the thread and reported.
            let _ = thread.join();
        }
    }
}

fn read<D: Device>(
    transfer: &Transfer<D>,
    mappings: &Mappings,
    reads: &Receiver<Read<D>>,
    filled: &Sender<Filled<D>>,
) {
    while let Ok(Read {
        ordinal,
        epoch,
        chunk,
        mut staging,
    }) = reads.recv()
    {
        let fill = || {
            if epoch != transfer.epoch.load(Ordering::Acquire) {
                return Ok(0);
            }
            let bytes = transfer
                .device
                .staging_bytes(&mut staging)
                .map_err(ReadError::Device)?;
            let (source, offset) = (&chunk.source, chunk.source_offset);
            let read = if chunk.past_cache {
                source.read_direct(offset, chunk.len, bytes)
            } else {
                let buffer = &mut bytes[..chunk.len];
                mappings.read(source, offset, buffer).map(|()| 0)
            };
            read.map_err(ReadError::Source)
        };
        let result = catch_unwind(AssertUnwindSafe(fill))
            .unwrap_or_else(|panic| Err(ReadError::Panic(message_of(&*panic))));
        if filled
            .send(Filled {
                ordinal,
                chunk,
                staging,
                result,
            })
            .is_err()
        {
            return;
        }
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

fn message_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_else(|| "no message".to_owned())
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
    reads: Sender<Read<D>>,
    filled: Receiver<Filled<D>>,
    /// Longest idle first.
    idle: VecDeque<D::Staging>,
    buffer_bytes: usize,
    /// Jobs not yet submitted; the front is being submitted.
    jobs: VecDeque<Queued<D>>,
    /// Where reading stands: index in `jobs`, upload, bytes of it.
    next: (usize, usize, u64),
    /// Chunks handed to readers, and chunks submitted.
    started: u64,
    finished: u64,
    /// Chunks that were filled before their turn.
    early: Vec<Filled<D>>,
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
            if self.started > self.finished {
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
                if self.transfer.visit_program(job).is_pinned() {
                    How::Submit
                } else if self.requests.is_open(self.transfer, job.kind, job.visit) {
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
            self.requests.pin(self.transfer, job.kind, job.visit);
            match self.transfer.visit_program(job).is_pinned() {
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
        while !self.idle.is_empty() {
            let Some((epoch, chunk)) = self.next_chunk() else {
                return;
            };
            let staging = self.idle.pop_front().expect("just seen");
            let read = Read {
                ordinal: self.started,
                epoch,
                chunk,
                staging,
            };
            self.started += 1;
            assert!(self.reads.send(read).is_ok(), "the readers are gone");
        }
    }

    /// The next chunk to be read, over job boundaries, and the epoch of its job.
    fn next_chunk(&mut self) -> Option<(u64, Chunk)> {
        let (mut index, mut upload_index, mut done) = self.next;
        let job = loop {
            let Queued { message, how } = self.jobs.get(index)?;
            match (message, how) {
                (_, How::Pin) => return None,
                (Message::Job(job), How::Read) => {
                    if (upload_index, done) != (0, 0) || self.is_wanted(job) {
                        break job;
                    }
                    // Passes may be abandoned faster than their bytes can be read.
                    self.jobs[index].how = How::Submit; // where it is dropped
                }
                (_, How::Submit | How::Read) => index += 1,
            }
        };
        let uploads = &self.transfer.visit_program(job).uploads;
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
        let room = match upload.past_cache {
            true => self.buffer_bytes - 3 * DIRECT_ALIGN,
            false => self.buffer_bytes,
        };
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(room);
        let ends_upload = len as u64 == left;
        let last_of_job = ends_upload && staged(upload_index + 1).is_none();
        let chunk = Chunk {
            source: source.clone(),
            source_offset: done,
            arena_offset: offset + done,
            len,
            past_cache: upload.past_cache,
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
        let epoch = job.epoch;
        self.next = (index, upload_index, done);
        Some((epoch, chunk))
    }

    /// Waits for the oldest chunk being read and submits it.
    fn finish_chunk(&mut self) {
        let position = self
            .early
            .iter()
            .position(|filled| filled.ordinal == self.finished);
        let filled = match position {
            Some(position) => self.early.swap_remove(position),
            None => {
                let filled = self.filled.recv().expect("readers outlive the feeder");
                if filled.ordinal != self.finished {
                    self.early.push(filled);
                    return;
                }
                filled
            }
        };
        self.finished += 1;
        let Filled {
            chunk,
            mut staging,
            result,
            ..
        } = filled;
        let Some(Message::Job(job)) = self.jobs.front().map(|queued| &queued.message) else {
            unreachable!("a chunk belongs to the job in front")
        };
        if self.is_wanted(job) {
            let outcome = guarded(|| self.submit(job, &chunk, &mut staging, result));
            if let Err(error) = outcome {
                self.failed = Some(Self::failure_of(job, error));
            }
        }
        self.idle.push_back(staging);
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
        let begin = filled.map_err(|error| match error {
            ReadError::Source(source) => {
                let block = transfer.block_name(job.kind, job.visit).to_owned();
                OffloadError::Source { block, source }
            }
            ReadError::Device(error) => self.of_block(job, error),
            ReadError::Panic(message) => OffloadError::WorkerPanicked { message },
        })?;
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
