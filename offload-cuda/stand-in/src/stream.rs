//! Streams and events.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::Instant;

use crate::memory::Use;
use crate::{Code, breach, code, control, lock};

/// What a stream does when it comes to an operation.
pub(crate) enum Work {
    /// A copy, a fill or a kernel. An error is the device's.
    Device(Box<dyn FnOnce() -> Result<(), Code> + Send>),
    /// A function of the host.
    Host(Box<dyn FnOnce() + Send>),
    /// A point is passed.
    Record(Arc<Point>),
    /// A point of another stream is waited for.
    Wait(Arc<Point>),
}

struct Operation {
    work: Work,
    /// What the device fails with here.
    fails: Option<Code>,
    /// What must not be freed before the operation is done.
    uses: Vec<Use>,
}

/// A queue that a thread works off.
pub(crate) struct Stream {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    operations: VecDeque<Operation>,
    submitted: u64,
    done: u64,
    destroyed: bool,
}

impl Stream {
    fn start() -> Result<Arc<Self>, Code> {
        let stream = Arc::new(Self {
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let worker = Arc::clone(&stream);
        let thread = std::thread::Builder::new().name("stand-in stream".to_owned());
        let started = thread.spawn(move || worker.run());
        started.map_err(|_| code::OUT_OF_MEMORY)?;
        Ok(stream)
    }

    fn run(&self) {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(operation) = queue.operations.pop_front() {
                drop(queue);
                operation.run();
                queue = lock(&self.queue);
                queue.done += 1;
                self.changed.notify_all();
            } else if queue.destroyed {
                return;
            } else {
                queue = self.wait(queue);
            }
        }
    }

    fn wait<'a>(
        &self,
        queue: std::sync::MutexGuard<'a, Queue>,
    ) -> std::sync::MutexGuard<'a, Queue> {
        self.changed
            .wait(queue)
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn submit(&self, work: Work, uses: Vec<Use>) {
        let fails = control::fails_later();
        let mut queue = lock(&self.queue);
        queue.submitted += 1;
        queue.operations.push_back(Operation { work, fails, uses });
        self.changed.notify_all();
    }

    /// Waits for what is submitted now.
    pub(crate) fn synchronize(&self) {
        let mut queue = lock(&self.queue);
        let submitted = queue.submitted;
        while queue.done < submitted {
            queue = self.wait(queue);
        }
    }
}

impl Operation {
    fn run(self) {
        if let Some(code) = self.fails {
            control::fail(code);
        }
        // A lost device does nothing more, but nobody waits for it in vain.
        let works = control::lost().is_none();
        match self.work {
            Work::Device(work) if works => {
                if let Err(code) = work() {
                    control::fail(code);
                }
            }
            Work::Host(work) if works => control::in_host_function(work),
            Work::Device(_) | Work::Host(_) => {}
            Work::Record(point) => point.pass(),
            Work::Wait(point) => {
                point.wait();
            }
        }
        drop(self.uses);
    }
}

/// One recording of an event.
#[derive(Default)]
pub(crate) struct Point {
    passed: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Point {
    fn pass(&self) {
        *lock(&self.passed) = Some(Instant::now());
        self.changed.notify_all();
    }

    pub(crate) fn wait(&self) {
        let mut passed = lock(&self.passed);
        while passed.is_none() {
            passed = self
                .changed
                .wait(passed)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Event {
    /// The last recording.
    last: Option<Arc<Point>>,
    times: bool,
}

struct Table {
    next: usize,
    streams: BTreeMap<usize, Arc<Stream>>,
    legacy: Option<Arc<Stream>>,
    per_thread: Option<HashMap<ThreadId, Arc<Stream>>>,
    /// All that may have work, destroyed or not.
    all: Vec<Weak<Stream>>,
    events: BTreeMap<usize, Event>,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    // Clear of the handles of default streams.
    next: 0x1000,
    streams: BTreeMap::new(),
    legacy: None,
    per_thread: None,
    all: Vec::new(),
    events: BTreeMap::new(),
});

impl Table {
    fn handle(&mut self) -> usize {
        self.next += 16;
        self.next
    }

    fn start(&mut self) -> Result<Arc<Stream>, Code> {
        let stream = Stream::start()?;
        self.all.retain(|stream| stream.strong_count() > 0);
        self.all.push(Arc::downgrade(&stream));
        Ok(stream)
    }

    fn event(&mut self, handle: usize, what: &str) -> &mut Event {
        self.events
            .get_mut(&handle)
            .unwrap_or_else(|| breach(&format!("no event, or no more, to {what}: {handle:#x}")))
    }
}

pub(crate) fn create() -> Result<usize, Code> {
    let mut table = lock(&TABLE);
    let stream = table.start()?;
    let handle = table.handle();
    table.streams.insert(handle, stream);
    Ok(handle)
}

/// The stream of a handle: 0 and 1 are the legacy default stream, 2 is the calling thread's.
pub(crate) fn get(handle: usize) -> Result<Arc<Stream>, Code> {
    let mut table = lock(&TABLE);
    let stream = match handle {
        0 | 1 => match table.legacy.clone() {
            Some(stream) => stream,
            None => {
                let stream = table.start()?;
                table.legacy.insert(stream).clone()
            }
        },
        2 => {
            let thread = std::thread::current().id();
            let known = table.per_thread.get_or_insert_default().get(&thread);
            match known.cloned() {
                Some(stream) => stream,
                None => {
                    let stream = table.start()?;
                    let streams = table.per_thread.get_or_insert_default();
                    streams.insert(thread, Arc::clone(&stream));
                    stream
                }
            }
        }
        _ => match table.streams.get(&handle) {
            Some(stream) => Arc::clone(stream),
            None => breach(&format!("no stream, or no more: {handle:#x}")),
        },
    };
    Ok(stream)
}

/// What was submitted goes on.
pub(crate) fn destroy(handle: usize) {
    let stream = lock(&TABLE).streams.remove(&handle);
    let Some(stream) = stream else {
        breach(&format!("a stream is destroyed twice: {handle:#x}"));
    };
    lock(&stream.queue).destroyed = true;
    stream.changed.notify_all();
}

/// Waits for all streams.
pub(crate) fn synchronize_all() {
    let all: Vec<_> = lock(&TABLE).all.iter().filter_map(Weak::upgrade).collect();
    all.iter().for_each(|stream| stream.synchronize());
}

pub(crate) fn create_event(times: bool) -> usize {
    let mut table = lock(&TABLE);
    let handle = table.handle();
    table.events.insert(handle, Event { last: None, times });
    handle
}

pub(crate) fn destroy_event(handle: usize) {
    if lock(&TABLE).events.remove(&handle).is_none() {
        breach(&format!("an event is destroyed twice: {handle:#x}"));
    }
}

pub(crate) fn record(event: usize, stream: usize) -> Result<(), Code> {
    let (stream, point) = (get(stream)?, Arc::<Point>::default());
    // In one step: two threads that record one event leave it at the later of both.
    let mut table = lock(&TABLE);
    table.event(event, "record").last = Some(Arc::clone(&point));
    stream.submit(Work::Record(point), Vec::new());
    Ok(())
}

/// The last recording of an event.
pub(crate) fn last(event: usize) -> Option<Arc<Point>> {
    lock(&TABLE).event(event, "wait for").last.clone()
}

/// Milliseconds between the last recordings of two events.
pub(crate) fn elapsed(from: usize, to: usize) -> Result<f32, Code> {
    let mut table = lock(&TABLE);
    let mut time = |event| {
        let event = table.event(event, "take the time of");
        if !event.times {
            return Err(code::INVALID_HANDLE);
        }
        let point = event.last.as_ref().ok_or(code::INVALID_HANDLE)?;
        lock(&point.passed).ok_or(code::NOT_READY)
    };
    let (from, to) = (time(from)?, time(to)?);
    let seconds = match to.checked_duration_since(from) {
        Some(after) => after.as_secs_f32(),
        None => -(from - to).as_secs_f32(),
    };
    Ok(seconds * 1e3)
}

pub(crate) fn live() -> u64 {
    let table = lock(&TABLE);
    (table.streams.len() + table.events.len()) as u64
}

/// Destroys what is left with its context.
pub(crate) fn clear() {
    let handles: Vec<_> = lock(&TABLE).streams.keys().copied().collect();
    handles.into_iter().for_each(destroy);
    lock(&TABLE).events.clear();
}
