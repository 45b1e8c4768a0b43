//! Streams and events: a queued stream is a thread that works through a queue, an inline stream works on the caller's
//! thread.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::arena::{CpuHold, Holder, Memory};
use super::shared::{Counted, Shared};
use super::transfer::{CpuPinned, Slot, decode_table};
use crate::device::{DecodeTable, DeviceError, Generation};
use crate::plan::Place;

/// An event's state. `recorded` counts on the host, `passed` on the streams.
#[derive(Debug)]
pub(super) struct EventState {
    pub(super) recorded: AtomicU64,
    pub(super) passed: AtomicU64,
    pub(super) at: Mutex<Option<Instant>>,
}

/// An event of the CPU device.
#[derive(Debug)]
pub struct CpuEvent {
    pub(super) state: Arc<EventState>,
    _count: Counted,
}

impl CpuEvent {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let state = EventState {
            recorded: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            at: Mutex::new(None),
        };
        Self {
            state: Arc::new(state),
            _count: Counted::new(shared, |counts| &counts.events),
        }
    }

    /// The number of the next recording, counted as made.
    pub(super) fn next_generation(&self) -> Generation {
        Generation(self.state.recorded.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// The last recording, after checking that `generation` was made.
    pub(super) fn last_recording(&self, generation: Generation) -> Generation {
        let recorded = self.state.recorded.load(Ordering::Acquire);
        assert!(
            generation.0 >= 1 && generation.0 <= recorded,
            "contract: wait for recording {} of an event that was recorded {recorded} times",
            generation.0
        );
        Generation(recorded)
    }
}

pub(super) enum Operation {
    UploadPinned {
        memory: Arc<Memory>,
        offset: u64,
        pinned: CpuPinned,
        source: Range<usize>,
    },
    UploadStaged {
        memory: Arc<Memory>,
        offset: u64,
        slot: Arc<Slot>,
        buffer: Box<[u8]>,
        source: Range<usize>,
    },
    Decode {
        memory: Arc<Memory>,
        tables: Arc<Vec<DecodeTable>>,
        table: usize,
    },
    Record {
        event: Arc<EventState>,
        generation: Generation,
    },
    Wait {
        event: Arc<EventState>,
        generation: Generation,
    },
    BeginRead {
        memory: Arc<Memory>,
        id: u64,
        range: Range<u64>,
    },
    EndRead {
        memory: Arc<Memory>,
        id: u64,
        range: Range<u64>,
        reused: bool,
    },
    Run(Box<dyn FnOnce() + Send>),
    Stop,
}

impl Operation {
    fn execute(self, shared: &Shared) -> Result<(), DeviceError> {
        let poison = |memory: &Memory, range: &Range<u64>| {
            if shared.options.poison {
                memory.write(range, Holder::Poison, |bytes| bytes.fill(0xCB));
            }
        };
        match self {
            Self::UploadPinned {
                memory,
                offset,
                pinned,
                source,
            } => {
                let bytes = &pinned.bytes[source];
                let range = offset..offset + bytes.len() as u64;
                memory.write(&range, Holder::Upload, |to| to.copy_from_slice(bytes));
            }
            Self::UploadStaged {
                memory,
                offset,
                slot,
                buffer,
                source,
            } => {
                let range = offset..offset + source.len() as u64;
                memory.write(&range, Holder::Upload, |to| {
                    to.copy_from_slice(&buffer[source])
                });
                *slot.buffer.lock() = Some(buffer);
                shared.announce();
            }
            Self::Decode {
                memory,
                tables,
                table,
            } => {
                let table = &tables[table];
                decode_table(&memory, table);
                if let Some(staging) = &table.staging {
                    poison(&memory, &Place::range(staging));
                }
            }
            Self::Record { event, generation } => {
                *event.at.lock() = Some(Instant::now());
                event.passed.fetch_max(generation.0, Ordering::AcqRel);
                shared.announce();
            }
            Self::Wait { event, generation } => {
                shared.wait_until(|| event.passed.load(Ordering::Acquire) >= generation.0)?;
            }
            Self::BeginRead { memory, id, range } => CpuHold::enter(&memory, id, &range),
            Self::EndRead {
                memory,
                id,
                range,
                reused,
            } => {
                CpuHold::leave(&memory, id);
                if reused {
                    poison(&memory, &range);
                }
            }
            Self::Run(run) => run(),
            Self::Stop => {}
        }
        Ok(())
    }
}

struct Queue {
    operations: Mutex<VecDeque<Operation>>,
    filled: Condvar,
}

enum Kind {
    Inline,
    Queued {
        queue: Arc<Queue>,
        thread: Option<JoinHandle<()>>,
    },
}

struct StreamState {
    kind: Kind,
    shared: Arc<Shared>,
    _count: Counted,
}

/// A stream of the CPU device. The last clone to be dropped waits for the work submitted.
#[derive(Clone)]
pub struct CpuStream {
    state: Arc<StreamState>,
}

impl CpuStream {
    pub(super) fn inline(shared: &Arc<Shared>) -> Self {
        Self::with_kind(shared, Kind::Inline)
    }

    pub(super) fn queued(shared: &Arc<Shared>, name: &str) -> Result<Self, DeviceError> {
        let queue = Arc::new(Queue {
            operations: Mutex::new(VecDeque::with_capacity(256)),
            filled: Condvar::new(),
        });
        let ordinal = shared.streams_made.fetch_add(1, Ordering::Relaxed);
        let jitter = shared
            .options
            .jitter
            .map(|seed| Jitter::new(seed ^ (ordinal + 1)));
        let thread = std::thread::Builder::new()
            .name(format!("offload-{name}"))
            .spawn({
                let (queue, shared) = (Arc::clone(&queue), Arc::clone(shared));
                move || work(&queue, &shared, jitter)
            })
            .map_err(|error| DeviceError::Failed {
                call: "create_stream",
                reason: error.to_string(),
            })?;
        Ok(Self::with_kind(
            shared,
            Kind::Queued {
                queue,
                thread: Some(thread),
            },
        ))
    }

    fn with_kind(shared: &Arc<Shared>, kind: Kind) -> Self {
        let count = Counted::new(shared, |counts| &counts.streams);
        Self {
            state: Arc::new(StreamState {
                kind,
                shared: Arc::clone(shared),
                _count: count,
            }),
        }
    }

    /// Whether operations run on the caller's thread.
    #[must_use]
    pub fn is_inline(&self) -> bool {
        matches!(self.state.kind, Kind::Inline)
    }

    /// Submits code: what an engine's kernels are on a real device. Runs after everything submitted before.
    ///
    /// # Panics
    /// When a stream of the device met a breach of contract.
    pub fn launch(&self, run: impl FnOnce() + Send + 'static) {
        self.submit(Operation::Run(Box::new(run)))
            .expect("contract: no work on a lost device");
    }

    pub(super) fn submit(&self, operation: Operation) -> Result<(), DeviceError> {
        self.state.shared.check()?;
        match &self.state.kind {
            Kind::Inline => operation.execute(&self.state.shared),
            Kind::Queued { queue, .. } => {
                queue.operations.lock().push_back(operation);
                queue.filled.notify_one();
                Ok(())
            }
        }
    }
}

impl Drop for StreamState {
    fn drop(&mut self) {
        if let Kind::Queued { queue, thread } = &mut self.kind {
            queue.operations.lock().push_back(Operation::Stop);
            queue.filled.notify_one();
            if let Some(thread) = thread.take()
                && thread.thread().id() != std::thread::current().id()
            {
                // A breach on the thread was caught there and is kept in `shared`.
                let _ = thread.join();
            }
        }
    }
}

impl fmt::Debug for CpuStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_inline() {
            "CpuStream(inline)"
        } else {
            "CpuStream(queued)"
        })
    }
}

fn work(queue: &Queue, shared: &Shared, mut jitter: Option<Jitter>) {
    loop {
        let operation = {
            let mut operations = queue.operations.lock();
            loop {
                if let Some(operation) = operations.pop_front() {
                    break operation;
                }
                queue.filled.wait(&mut operations);
            }
        };
        if matches!(operation, Operation::Stop) {
            return;
        }
        if shared.is_broken() {
            continue; // dropped: a broken device does nothing more
        }
        if let Some(jitter) = &mut jitter {
            jitter.delay();
        }
        match catch_unwind(AssertUnwindSafe(|| operation.execute(shared))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => shared.break_with(error.to_string()),
            Err(panic) => shared.break_with(message_of(&*panic)),
        }
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_else(|| "work on a stream panicked".to_owned())
}

/// Seeded delays before operations, so that orders which a missing fence allows do occur.
#[derive(Debug)]
struct Jitter {
    state: u64,
}

impl Jitter {
    fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        }
    }

    fn delay(&mut self) {
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        match self.state % 8 {
            0..4 => {}
            4..7 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros((self.state >> 32) % 100)),
        }
    }
}
