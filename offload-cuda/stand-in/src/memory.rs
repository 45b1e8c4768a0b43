//! Device memory, which is host memory at its own addresses, and registrations.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::{Code, breach, code, lock};

/// Copies from the host of up to so many bytes are made by the CPU when they are submitted.
pub(crate) const CPU_COPY: usize = 64 << 10;

/// What allocations are aligned to.
const ALIGN: usize = 256;

/// Registrations take whole pages.
const PAGE: usize = 4096;

/// What new memory holds: no zeros that somebody could rely on.
const GARBAGE: u8 = 0xA5;

/// An allocation or a registration.
pub(crate) struct Region {
    start: usize,
    bytes: usize,
    /// Submitted operations that use it.
    uses: AtomicUsize,
    /// What was there when it was page-locked for reading.
    locked: Option<Box<[u8]>>,
}

/// Bytes that a submitted operation uses, for as long as it does.
pub(crate) struct Use {
    region: Arc<Region>,
    address: usize,
    bytes: usize,
}

impl Use {
    fn new(region: &Arc<Region>, address: usize, bytes: usize) -> Self {
        region.uses.fetch_add(1, Ordering::AcqRel);
        Self {
            region: Arc::clone(region),
            address,
            bytes,
        }
    }

    /// Whether the memory was page-locked for reading.
    pub(crate) fn is_read_only(&self) -> bool {
        self.region.locked.is_some()
    }

    /// What lies there, to be read while the use lasts.
    pub(crate) fn pointer(&self) -> *const u8 {
        match &self.region.locked {
            Some(locked) => locked[self.address - self.region.start..][..self.bytes].as_ptr(),
            None => self.address as *const u8,
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.region.uses.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Memory {
    total: u64,
    used: u64,
    locks_read_only: bool,
    device: BTreeMap<usize, Arc<Region>>,
    host: BTreeMap<usize, Arc<Region>>,
}

static MEMORY: Mutex<Memory> = Mutex::new(Memory {
    total: 8 << 30,
    used: 0,
    locks_read_only: true,
    device: BTreeMap::new(),
    host: BTreeMap::new(),
});

fn find(regions: &BTreeMap<usize, Arc<Region>>, address: usize, bytes: usize) -> Option<Use> {
    let (_, region) = regions.range(..=address).next_back()?;
    let end = address.checked_add(bytes)?;
    (end <= region.start + region.bytes).then(|| Use::new(region, address, bytes))
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, ALIGN).unwrap_or_else(|_| breach("an allocation's size"))
}

/// Free and total bytes.
pub(crate) fn info() -> (usize, usize) {
    let memory = lock(&MEMORY);
    let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let free = memory.total.saturating_sub(memory.used);
    (bytes(free), bytes(memory.total))
}

pub(crate) fn set_total(bytes: u64) {
    lock(&MEMORY).total = bytes;
}

pub(crate) fn locks_read_only() -> bool {
    lock(&MEMORY).locks_read_only
}

pub(crate) fn set_locks_read_only(locks: bool) {
    lock(&MEMORY).locks_read_only = locks;
}

pub(crate) fn allocate(bytes: usize) -> Result<usize, Code> {
    if bytes == 0 {
        return Err(code::INVALID_VALUE);
    }
    let mut memory = lock(&MEMORY);
    if bytes as u64 > memory.total.saturating_sub(memory.used) {
        return Err(code::OUT_OF_MEMORY);
    }
    // SAFETY: not of 0 bytes.
    let pointer = unsafe { alloc(layout(bytes)) };
    if pointer.is_null() {
        return Err(code::OUT_OF_MEMORY);
    }
    // SAFETY: just allocated with so many bytes.
    unsafe { pointer.write_bytes(GARBAGE, bytes) };
    let start = pointer as usize;
    let region = Region {
        start,
        bytes,
        uses: AtomicUsize::new(0),
        locked: None,
    };
    memory.device.insert(start, Arc::new(region));
    memory.used += bytes as u64;
    Ok(start)
}

fn unused(region: &Region, what: &str) {
    let uses = region.uses.load(Ordering::Acquire);
    if uses > 0 {
        breach(&format!(
            "{what} {} bytes at {:#x} that {uses} submitted operations use",
            region.bytes, region.start
        ));
    }
}

pub(crate) fn free(address: usize) {
    let mut memory = lock(&MEMORY);
    let Some(region) = memory.device.remove(&address) else {
        breach(&format!("memory at {address:#x} is freed that is none"));
    };
    unused(&region, "freeing");
    memory.used -= region.bytes as u64;
    // SAFETY: allocated in `allocate` with this layout, no longer listed, and nothing uses it.
    unsafe { dealloc(address as *mut u8, layout(region.bytes)) };
}

/// Bytes of one allocation.
pub(crate) fn device(address: u64, bytes: usize) -> Option<Use> {
    find(&lock(&MEMORY).device, usize::try_from(address).ok()?, bytes)
}

/// Bytes of one registration.
pub(crate) fn host(address: usize, bytes: usize) -> Option<Use> {
    find(&lock(&MEMORY).host, address, bytes)
}

/// # Safety
/// Memory of so many bytes is mapped there until it is unregistered.
pub(crate) unsafe fn register(start: usize, bytes: usize, read_only: bool) -> Result<(), Code> {
    if start == 0 || bytes == 0 {
        return Err(code::INVALID_VALUE);
    }
    let mut memory = lock(&MEMORY);
    if read_only && !memory.locks_read_only {
        return Err(code::NOT_SUPPORTED);
    }
    let pages = |start: usize, bytes: usize| (start / PAGE, (start + bytes).div_ceil(PAGE));
    let (first, end) = pages(start, bytes);
    let overlaps = memory.host.values().any(|region| {
        let (other_first, other_end) = pages(region.start, region.bytes);
        first < other_end && other_first < end
    });
    if overlaps {
        return Err(code::HOST_MEMORY_ALREADY_REGISTERED);
    }
    let locked = read_only.then(|| {
        // SAFETY: mapped, as asked for. If a file is written to at this time, bytes may be old or new.
        let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, bytes) };
        bytes.into()
    });
    let region = Region {
        start,
        bytes,
        uses: AtomicUsize::new(0),
        locked,
    };
    memory.host.insert(start, Arc::new(region));
    Ok(())
}

pub(crate) fn unregister(start: usize) -> Result<(), Code> {
    let region = lock(&MEMORY).host.remove(&start);
    let region = region.ok_or(code::HOST_MEMORY_NOT_REGISTERED)?;
    unused(&region, "unregistering");
    Ok(())
}

pub(crate) fn live() -> u64 {
    let memory = lock(&MEMORY);
    (memory.device.len() + memory.host.len()) as u64
}

/// Frees what is left with its context. Nothing runs any more.
pub(crate) fn clear() {
    let addresses: Vec<_> = lock(&MEMORY).device.keys().copied().collect();
    addresses.into_iter().for_each(free);
    lock(&MEMORY).host.clear();
}
