//! A device's decoding at random against the definition of the formats.

use crate::decode::{self, Float, Scale};
use crate::device::{DecodeEntry, DecodeTable, Device, DeviceError};
use crate::encoding::Encoding;
use crate::plan::{PLACE_ALIGN, Place};
use crate::testing::conformance::Harness;
use crate::testing::toy::random_bytes;

/// A conversion: how a tensor is stored, what it becomes, and whether it has a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    /// How it is stored.
    pub encoding: Encoding,
    /// What it becomes.
    pub arrived: Encoding,
    /// Whether its numbers are multiplied.
    pub scaled: bool,
}

/// The conversions that `device` offers: those for which it prepares a table.
///
/// # Panics
/// When it refuses a table for another reason than that it cannot do the conversion.
#[must_use]
pub fn offered_conversions<D: Device>(device: &D) -> Vec<Conversion> {
    let arena = device.allocate_arena(4096).expect("a small arena fits");
    let mut offered = Vec::new();
    for conversion in all_conversions() {
        let tensor = Tensor::new(conversion, &mut Random(1), 1);
        let table = DecodeTable {
            entries: vec![tensor.entry(0, 2048)],
            staging: None,
        };
        match device.prepare(&arena, &[table]) {
            Ok(_) => offered.push(conversion),
            Err(DeviceError::Unsupported { .. }) => {}
            Err(error) => panic!("prepare {conversion:?}: {error}"),
        }
    }
    offered
}

/// Every conversion that has a definition: decoding to each type of float, with a scale where that is possible, and
/// copies of each encoding.
#[must_use]
pub fn all_conversions() -> Vec<Conversion> {
    let mut conversions = Vec::new();
    for &encoding in Encoding::ALL {
        let mut add = |arrived, scaled| {
            conversions.push(Conversion {
                encoding,
                arrived,
                scaled,
            });
        };
        add(encoding, false);
        for float in [Float::F32, Float::F16, Float::BF16].map(Float::encoding) {
            if decode::is_supported(encoding) && float != encoding {
                add(float, false);
            }
            if decode::is_scalable(encoding) {
                add(float, true);
            }
        }
    }
    conversions
}

/// Decodes `tables` tables, each of up to 24 tensors at random: of any conversion that the device offers, of any
/// length from nothing to several thousand numbers and sometimes many more, beginning at any byte of the arena. The
/// whole arena is compared: numbers bit for bit, NaN as a class, and bytes outside of every place unchanged.
///
/// The same `seed` makes the same tables.
///
/// # Panics
/// At the first difference, naming seed, table and tensor.
pub fn decode_at_random<H: Harness>(harness: &H, seed: u64, tables: u64) {
    let device = harness.device();
    let offered = offered_conversions(device);
    let stream = device
        .create_stream("decode")
        .expect("a stream can be made");
    for table in 0..tables {
        let mut random = Random(seed.wrapping_mul(1_000_003).wrapping_add(table));
        let tensors: Vec<Tensor> = (0..=random.up_to(23))
            .map(|_| {
                let conversion = offered[random.up_to(offered.len() as u64 - 1) as usize];
                let numbers = match random.up_to(9) {
                    0 => 40_000,
                    1..=4 => 9_000,
                    _ => 300,
                };
                let most = numbers / conversion.encoding.quant_block_len();
                let quant_blocks = random.up_to(most);
                Tensor::new(conversion, &mut random, quant_blocks)
            })
            .collect();

        let mut image = Vec::new();
        let mut starts = Vec::new();
        for tensor in &tensors {
            let gap = usize::try_from(random.up_to(40)).expect("small");
            image.resize(image.len() + gap, 0xEE);
            starts.push(image.len() as u64);
            image.extend_from_slice(&tensor.bytes);
        }
        let mut entries = Vec::new();
        let mut end = image.len() as u64;
        for (tensor, start) in tensors.iter().zip(starts) {
            let place = (end + random.up_to(600)).next_multiple_of(PLACE_ALIGN);
            let entry = tensor.entry(start, place);
            end = entry.place.end();
            entries.push(entry);
        }
        let arena_bytes = (end + random.up_to(600)).next_multiple_of(PLACE_ALIGN);
        let arena_len = usize::try_from(arena_bytes).expect("small");
        image.resize(arena_len, 0xCC);

        let arena = device.allocate_arena(arena_bytes).expect("a few MiB fit");
        let decode_table = DecodeTable {
            entries: entries.clone(),
            staging: None,
        };
        let program = device
            .prepare(&arena, &[decode_table])
            .expect("each conversion was offered");
        let mut staging = device.allocate_staging(arena_len).expect("a few MiB fit");
        device
            .staging_bytes(&mut staging)
            .expect("copies end")
            .copy_from_slice(&image);
        device
            .upload_staged(&stream, &arena, 0, &mut staging, 0..arena_len)
            .expect("submitted");
        device
            .decode(&stream, &arena, &program, 0)
            .expect("submitted");

        let got = harness.read(&stream, &arena, 0..arena_bytes);
        for (index, (tensor, entry)) in tensors.iter().zip(&entries).enumerate() {
            let start = usize::try_from(entry.place.offset).expect("small");
            let range = start..start + tensor.arrived.len();
            if let Some(number) = tensor.first_difference(&got[range.clone()]) {
                panic!(
                    "seed {seed}, table {table}, tensor {index}: number {number} of {entry:?} differs"
                );
            }
            image[range.clone()].copy_from_slice(&got[range]);
        }
        assert!(
            got == image,
            "seed {seed}, table {table}: bytes outside of every place changed"
        );
    }
}

/// A tensor at random and what it becomes.
struct Tensor {
    conversion: Conversion,
    bytes: Vec<u8>,
    scale: Option<Scale>,
    arrived: Vec<u8>,
}

impl Tensor {
    fn new(conversion: Conversion, random: &mut Random, quant_blocks: u64) -> Self {
        let Conversion {
            encoding, arrived, ..
        } = conversion;
        let len = |bytes: u64| usize::try_from(bytes).expect("small");
        let bytes = random_bytes(
            random.next(),
            len(quant_blocks * encoding.quant_block_bytes()),
        );
        let numbers = quant_blocks * encoding.quant_block_len();
        let scale = conversion.scaled.then(|| random.scale(numbers));
        let arrived = match Float::from_encoding(arrived) {
            Some(float) if arrived != encoding => {
                let mut arrived = vec![0; len(numbers * float.bytes())];
                match &scale {
                    Some(scale) => decode::decode_scaled_by_definition(
                        encoding,
                        &bytes,
                        scale,
                        float,
                        &mut arrived,
                    ),
                    None => decode::decode_by_definition(encoding, &bytes, float, &mut arrived),
                }
                .expect("a conversion that has a definition");
                arrived
            }
            _ => bytes.clone(),
        };
        Self {
            conversion,
            bytes,
            scale,
            arrived,
        }
    }

    fn entry(&self, encoded: u64, place: u64) -> DecodeEntry {
        DecodeEntry {
            encoding: self.conversion.encoding,
            arrived: self.conversion.arrived,
            scale: self.scale.clone(),
            encoded: Place {
                offset: encoded,
                bytes: self.bytes.len() as u64,
            },
            place: Place {
                offset: place,
                bytes: self.arrived.len() as u64,
            },
        }
    }

    /// The first number that is another one, or byte of a copy.
    fn first_difference(&self, got: &[u8]) -> Option<usize> {
        let Conversion {
            encoding, arrived, ..
        } = self.conversion;
        let float = Float::from_encoding(arrived).filter(|_| arrived != encoding);
        let width = float.map_or(1, |float| usize::try_from(float.bytes()).expect("small"));
        let is_nan = |number: &[u8]| match (float, number) {
            (Some(Float::F32), &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).is_nan(),
            (Some(Float::F16), &[a, b]) => half::f16::from_le_bytes([a, b]).is_nan(),
            (Some(Float::BF16), &[a, b]) => half::bf16::from_le_bytes([a, b]).is_nan(),
            _ => false,
        };
        let pairs = got.chunks(width).zip(self.arrived.chunks(width));
        pairs
            .enumerate()
            .find(|(_, (got, wanted))| got != wanted && !(is_nan(got) && is_nan(wanted)))
            .map(|(number, _)| number)
    }
}

/// Numbers at random (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let bytes = random_bytes(self.0, 8);
        u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
    }

    /// From 0 to `most`.
    fn up_to(&mut self, most: u64) -> u64 {
        self.next() % (most + 1)
    }

    /// One factor, or one for each row of a length that need not divide `numbers`, from within a row on.
    fn scale(&mut self, numbers: u64) -> Scale {
        let factor = |bits: u64| (bits as i32 as f32) * f32::EPSILON;
        if self.up_to(2) == 0 {
            return Scale::tensor(factor(self.next()));
        }
        let row_len = match self.up_to(2) {
            0 => 1 + self.up_to(9),
            1 => 8 * (1 + self.up_to(500)),
            _ => 1 + self.up_to(5000),
        };
        let skipped = match self.up_to(1) {
            0 => 0,
            _ => self.up_to(2 * row_len),
        };
        let rows = (skipped + numbers).div_ceil(row_len);
        let factors: Vec<f32> = (0..rows).map(|_| factor(self.next())).collect();
        Scale::rows(factors, row_len).after(skipped)
    }
}
