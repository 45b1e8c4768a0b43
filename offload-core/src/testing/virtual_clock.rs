//! A device without data, whose time follows the planner's cost model.
//!
//! Every operation gets its end when it is submitted, since all it waits for was submitted before. The host takes no
//! time; it moves on only where it waits.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::{DecodeTable, Device, DeviceError, DeviceMemory, Generation, Pinning, Rung};
use crate::executor::Costs;
use crate::source::Source;

/// A device whose clock is arithmetic.
#[derive(Debug, Clone)]
pub struct VirtualDevice {
    costs: Costs,
    host_s: Arc<Mutex<f64>>,
}

/// A stream of a [`VirtualDevice`]: the time at which its last operation ends.
#[derive(Debug, Clone)]
pub struct VirtualStream {
    free_s: Arc<Mutex<f64>>,
}

/// An event of a [`VirtualDevice`].
#[derive(Debug, Default)]
pub struct VirtualEvent {
    last: Mutex<(u64, f64)>,
}

impl VirtualDevice {
    /// A device that takes the times of `costs`.
    #[must_use]
    pub fn new(costs: Costs) -> Self {
        Self {
            costs,
            host_s: Arc::new(Mutex::new(0.0)),
        }
    }

    /// Submits work of `seconds`.
    pub fn compute(&self, stream: &VirtualStream, seconds: f64) {
        self.run(stream, seconds);
    }

    fn run(&self, stream: &VirtualStream, seconds: f64) -> f64 {
        let host_s = *self.host_s.lock();
        let mut free_s = stream.free_s.lock();
        *free_s = free_s.max(host_s) + seconds;
        *free_s
    }

    fn upload(&self, stream: &VirtualStream, bytes: u64, rate: f64) {
        self.run(
            stream,
            self.costs.rates.upload_latency_s + bytes as f64 / rate,
        );
    }
}

fn passed_at(event: &VirtualEvent, generation: Generation) -> f64 {
    let (recorded, at_s) = *event.last.lock();
    assert!(
        (1..=recorded).contains(&generation.0),
        "contract: wait for recording {} of an event that was recorded {recorded} times",
        generation.0
    );
    at_s
}

impl Device for VirtualDevice {
    type Stream = VirtualStream;
    type Event = VirtualEvent;
    type Arena = u64;
    type Pinned = ();
    type Staging = Vec<u8>;
    /// Bytes read and written by each table.
    type Program = Vec<u64>;
    type Hold = ();
    type View = Range<u64>;

    fn name(&self) -> String {
        "virtual".to_owned()
    }

    fn memory(&self) -> Result<DeviceMemory, DeviceError> {
        Ok(DeviceMemory {
            free_bytes: u64::MAX,
            total_bytes: u64::MAX,
        })
    }

    fn allocate_arena(&self, bytes: u64) -> Result<u64, DeviceError> {
        Ok(bytes)
    }

    fn allocate_staging(&self, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        Ok(vec![0; bytes])
    }

    fn pin(&self, source: &Source) -> Result<Pinning<()>, DeviceError> {
        Ok(match source {
            Source::Memory { .. } => Pinning::Pinned {
                pinned: (),
                rung: Rung::Memory,
                note: None,
            },
            _ => Pinning::Staged {
                reason: "files are read at the rate of the disk".to_owned(),
            },
        })
    }

    fn pin_bytes(&self) -> Option<NonZeroU64> {
        None
    }

    fn create_stream(&self, _name: &str) -> Result<VirtualStream, DeviceError> {
        Ok(VirtualStream {
            free_s: Arc::default(),
        })
    }

    fn create_event(&self) -> Result<VirtualEvent, DeviceError> {
        Ok(VirtualEvent::default())
    }

    fn prepare(&self, _arena: &u64, tables: &[DecodeTable]) -> Result<Vec<u64>, DeviceError> {
        let bytes = |table: &DecodeTable| {
            table
                .entries
                .iter()
                .map(|entry| entry.encoded.bytes + entry.place.bytes)
                .sum()
        };
        Ok(tables.iter().map(bytes).collect())
    }

    fn staging_bytes<'a>(&self, staging: &'a mut Vec<u8>) -> Result<&'a mut [u8], DeviceError> {
        Ok(staging)
    }

    fn upload_pinned(
        &self,
        stream: &VirtualStream,
        _arena: &u64,
        _offset: u64,
        _pinned: &(),
        source: Range<usize>,
    ) -> Result<(), DeviceError> {
        self.upload(
            stream,
            source.len() as u64,
            self.costs.rates.wire_bytes_per_s,
        );
        Ok(())
    }

    fn upload_staged(
        &self,
        stream: &VirtualStream,
        _arena: &u64,
        _offset: u64,
        _staging: &mut Vec<u8>,
        source: Range<usize>,
    ) -> Result<(), DeviceError> {
        let rates = &self.costs.rates;
        self.upload(
            stream,
            source.len() as u64,
            rates.wire_bytes_per_s.min(rates.disk_bytes_per_s),
        );
        Ok(())
    }

    fn decode(
        &self,
        stream: &VirtualStream,
        _arena: &u64,
        program: &Vec<u64>,
        table: usize,
    ) -> Result<(), DeviceError> {
        self.run(
            stream,
            program[table] as f64 / self.costs.decode_bytes_per_s,
        );
        Ok(())
    }

    fn record(
        &self,
        stream: &VirtualStream,
        event: &VirtualEvent,
    ) -> Result<Generation, DeviceError> {
        let at_s = self.run(stream, 0.0);
        let mut last = event.last.lock();
        *last = (last.0 + 1, at_s);
        Ok(Generation(last.0))
    }

    fn wait(
        &self,
        stream: &VirtualStream,
        event: &VirtualEvent,
        generation: Generation,
    ) -> Result<(), DeviceError> {
        let at_s = passed_at(event, generation);
        let mut free_s = stream.free_s.lock();
        *free_s = free_s.max(at_s);
        Ok(())
    }

    fn synchronize(&self, event: &VirtualEvent, generation: Generation) -> Result<(), DeviceError> {
        let at_s = passed_at(event, generation);
        let mut host_s = self.host_s.lock();
        *host_s = host_s.max(at_s);
        Ok(())
    }

    fn elapsed(&self, from: &VirtualEvent, to: &VirtualEvent) -> Result<f64, DeviceError> {
        let (from_s, to_s) = (from.last.lock().1, to.last.lock().1);
        Ok(to_s - from_s)
    }

    fn begin_read(
        &self,
        _stream: &VirtualStream,
        _arena: &u64,
        _range: Range<u64>,
    ) -> Result<(), DeviceError> {
        Ok(())
    }

    fn end_read(
        &self,
        _stream: &VirtualStream,
        _hold: (),
        _reused: bool,
    ) -> Result<(), DeviceError> {
        Ok(())
    }

    fn host_bytes<'a>(&self, _hold: &'a (), _range: Range<u64>) -> Option<&'a [u8]> {
        None
    }

    fn view(&self, _arena: &u64, range: Range<u64>) -> Range<u64> {
        range
    }

    fn address(&self, _arena: &u64, offset: u64) -> u64 {
        offset
    }
}
