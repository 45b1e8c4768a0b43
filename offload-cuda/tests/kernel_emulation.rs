//! The decode kernel, compiled as plain C++ and run on the CPU, against the reference decoder: bit for bit, NaN as a
//! class, at every alignment of the source and with tails, and nothing written elsewhere.
//!
//! What only a GPU has is behind `__CUDA_ARCH__` in `primitives.cuh`, a few instructions with portable twins; all the
//! rest runs here as it does there. Skipped, aloud, where there is no C++ compiler (`CXX`, or `c++`).

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failed unwrap fails the test; a skipped test says so"
)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use offload_core::decode::{self, Float, Scale};
use offload_core::device::{DecodeEntry, DecodeTable};
use offload_core::encoding::Encoding;
use offload_core::plan::{PLACE_ALIGN, Place};
use offload_cuda::kernels;

/// Where the arena pretends to be on the device.
const ARENA_BASE: u64 = 0x7f12_3456_7800;

const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::BF16];

/// The emulator, compiled once; none without a compiler.
fn emulator() -> Option<&'static Path> {
    static EMULATOR: OnceLock<Option<PathBuf>> = OnceLock::new();
    EMULATOR
        .get_or_init(|| {
            let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
            if let Err(error) = Command::new(&compiler).arg("--version").output() {
                eprintln!(
                    "SKIPPED: the kernels were not emulated, {compiler} does not run: {error}"
                );
                return None;
            }
            let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
            // Made beside and moved into place, in case that another run of this test is at it.
            let made = folder.join(format!("emulate-{}", std::process::id()));
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulation/emulate.cpp");
            let status = Command::new(&compiler)
                .args(["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Werror"])
                // GCC does not know that `#pragma unroll` is for others.
                .args(["-Wno-unknown-pragmas", "-o"])
                .args([&made, &source])
                .status()
                .unwrap();
            assert!(status.success(), "the kernels do not compile as C++");
            let program = folder.join("emulate");
            fs::rename(made, &program).unwrap();
            Some(program)
        })
        .as_deref()
}

/// Tensors laid out in an arena, sources first, and what is to become of them.
#[derive(Default)]
struct Scene {
    sources: Vec<u8>,
    tensors: Vec<(DecodeEntry, Vec<u8>)>,
}

impl Scene {
    /// Adds a tensor whose source begins `gap` bytes after the one before.
    fn add(&mut self, encoding: Encoding, arrived: Encoding, gap: usize, bytes: &[u8]) {
        let expected = reference(encoding, arrived, bytes);
        self.add_expected(encoding, arrived, None, gap, bytes, expected);
    }

    /// Adds a tensor with a scale.
    fn add_scaled(
        &mut self,
        encoding: Encoding,
        float: Float,
        scale: Scale,
        gap: usize,
        bytes: &[u8],
    ) {
        let mut expected = vec![0; bytes.len() * usize::try_from(float.bytes()).unwrap()];
        decode::decode_scaled_by_definition(encoding, bytes, &scale, float, &mut expected).unwrap();
        self.add_expected(
            encoding,
            float.encoding(),
            Some(scale),
            gap,
            bytes,
            expected,
        );
    }

    fn add_expected(
        &mut self,
        encoding: Encoding,
        arrived: Encoding,
        scale: Option<Scale>,
        gap: usize,
        bytes: &[u8],
        expected: Vec<u8>,
    ) {
        self.sources.resize(self.sources.len() + gap, 0xee);
        let encoded = Place {
            offset: self.sources.len() as u64,
            bytes: bytes.len() as u64,
        };
        self.sources.extend_from_slice(bytes);
        let entry = DecodeEntry {
            encoding,
            arrived,
            scale,
            encoded,
            place: Place {
                offset: 0,
                bytes: 0,
            },
        };
        self.tensors.push((entry, expected));
    }

    /// Decodes everything in one launch and compares the whole arena.
    fn check(self, emulator: &Path, what: &str) {
        let Self {
            sources: mut arena,
            tensors,
        } = self;
        let mut end = (arena.len() as u64).next_multiple_of(PLACE_ALIGN);
        let mut table = DecodeTable::default();
        for (entry, expected) in &tensors {
            let place = Place {
                offset: end,
                bytes: expected.len() as u64,
            };
            end = place.end().next_multiple_of(PLACE_ALIGN);
            table.entries.push(DecodeEntry {
                place,
                ..entry.clone()
            });
        }
        arena.resize(usize::try_from(end).unwrap(), 0xcc);
        let got = run(emulator, &table, &arena);
        assert_eq!(got.len(), arena.len());
        for (entry, (_, expected)) in table.entries.iter().zip(&tensors) {
            let range = usize::try_from(entry.place.offset).unwrap()
                ..usize::try_from(entry.place.end()).unwrap();
            let DecodeEntry {
                encoding,
                arrived,
                encoded,
                ..
            } = entry;
            assert_same(
                &format!(
                    "{what}: {encoding} to {arrived}, source at {} of {} bytes",
                    encoded.offset, encoded.bytes
                ),
                (encoding != arrived).then_some(*arrived),
                &got[range.clone()],
                expected,
            );
            arena[range.clone()].copy_from_slice(&got[range]);
        }
        assert!(got == arena, "{what}: bytes outside the places changed");
    }
}

fn reference(encoding: Encoding, arrived: Encoding, bytes: &[u8]) -> Vec<u8> {
    if encoding == arrived {
        return bytes.to_vec();
    }
    let float = Float::from_encoding(arrived).unwrap();
    let numbers = bytes.len() as u64 / encoding.quant_block_bytes() * encoding.quant_block_len();
    let mut decoded = vec![0; usize::try_from(numbers * float.bytes()).unwrap()];
    decode::decode_by_definition(encoding, bytes, float, &mut decoded).unwrap();
    decoded
}

fn run(emulator: &Path, table: &DecodeTable, arena: &[u8]) -> Vec<u8> {
    let launch = kernels::launch_table(table, ARENA_BASE).unwrap();
    let mut input = Vec::new();
    for word in [
        ARENA_BASE,
        arena.len() as u64,
        launch.bytes.len() as u64,
        u64::from(launch.entry_count),
        u64::from(launch.tiles),
    ] {
        input.extend_from_slice(&word.to_le_bytes());
    }
    input.extend_from_slice(&launch.bytes);
    input.extend_from_slice(arena);
    let mut child = Command::new(emulator)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "the emulator failed");
    output.stdout
}

/// Compares bits; numbers of type `float` that are NaN on both sides count as equal.
fn assert_same(what: &str, float: Option<Encoding>, got: &[u8], wanted: &[u8]) {
    let width = float.map_or(1, |float| {
        usize::try_from(float.quant_block_bytes()).unwrap()
    });
    for (i, (got, wanted)) in got
        .chunks_exact(width)
        .zip(wanted.chunks_exact(width))
        .enumerate()
    {
        let both_nan = float.is_some_and(|float| is_nan(float, got) && is_nan(float, wanted));
        assert!(
            got == wanted || both_nan,
            "{what}: number {i} is {got:02x?}, the reference has {wanted:02x?}"
        );
    }
}

fn is_nan(float: Encoding, bytes: &[u8]) -> bool {
    let bits = bytes
        .iter()
        .rev()
        .fold(0u32, |bits, &b| (bits << 8) | u32::from(b));
    match float {
        Encoding::F32 => bits & 0x7fff_ffff > 0x7f80_0000,
        Encoding::F16 => bits & 0x7fff > 0x7c00,
        _ => bits & 0x7fff > 0x7f80,
    }
}

/// Seeded bytes: NaN and infinite scales are among them.
fn random_bytes(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

/// Every encoding and target that the kernel offers.
fn conversions() -> Vec<(Encoding, Encoding)> {
    let mut conversions = Vec::new();
    for &encoding in Encoding::ALL {
        for arrived in FLOATS.map(Float::encoding).into_iter().chain([encoding]) {
            if kernels::supports(encoding, arrived) && !conversions.contains(&(encoding, arrived)) {
                conversions.push((encoding, arrived));
            }
        }
    }
    conversions
}

#[test]
fn every_conversion_at_every_alignment_with_ragged_counts() {
    let Some(emulator) = emulator() else { return };
    for (encoding, arrived) in conversions() {
        let mut scene = Scene::default();
        for alignment in 0..16 {
            for quant_blocks in [1, 2, 3, 5, 37] {
                let at = (scene.sources.len() as u64 + 1).next_multiple_of(16) + alignment;
                let gap = usize::try_from(at).unwrap() - scene.sources.len();
                let bytes = random_bytes(
                    alignment * 100 + quant_blocks,
                    quant_blocks * encoding.quant_block_bytes(),
                );
                scene.add(encoding, arrived, gap, &bytes);
            }
        }
        scene.check(emulator, "ragged");
    }
}

#[test]
fn every_conversion_over_several_tiles() {
    let Some(emulator) = emulator() else { return };
    for (encoding, arrived) in conversions() {
        let mut scene = Scene::default();
        for (gap, numbers) in [(0, 8192), (1, 8193), (6, 3 * 8192 + 1111), (15, 8191)] {
            let quant_blocks = u64::div_ceil(numbers, encoding.quant_block_len());
            let bytes = random_bytes(numbers, quant_blocks * encoding.quant_block_bytes());
            scene.add(encoding, arrived, gap, &bytes);
        }
        scene.check(emulator, "tiles");
    }
}

#[test]
fn a_table_of_every_conversion_in_one_launch() {
    let Some(emulator) = emulator() else { return };
    let mut scene = Scene::default();
    for (i, (encoding, arrived)) in conversions().into_iter().enumerate() {
        let quant_blocks = (i as u64 % 3) * 17 + 4;
        let bytes = random_bytes(i as u64, quant_blocks * encoding.quant_block_bytes());
        scene.add(encoding, arrived, i % 5, &bytes);
        scene.add(encoding, arrived, 0, &[]);
    }
    scene.check(emulator, "mixed");
}

#[test]
fn every_number_of_every_element_type() {
    let Some(emulator) = emulator() else { return };
    let mut scene = Scene::default();
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    // Each way that a float can round to 16 bits: the lower 16 bits decide, with every upper half.
    let floats: Vec<u8> = (0..=u16::MAX)
        .flat_map(|upper| {
            [
                0, 1, 0x0fff, 0x1000, 0x1001, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff,
            ]
            .map(|lower| (u32::from(upper) << 16) | lower)
        })
        .flat_map(u32::to_le_bytes)
        .collect();
    for (encoding, arrived) in conversions() {
        match encoding {
            Encoding::F32 => scene.add(encoding, arrived, 0, &floats),
            Encoding::F16 | Encoding::BF16 => scene.add(encoding, arrived, 0, &halves),
            Encoding::F8E4M3 | Encoding::F8E5M2 => {
                scene.add(encoding, arrived, 0, &(0..=u8::MAX).collect::<Vec<_>>());
            }
            _ => {}
        }
    }
    scene.check(emulator, "all");
}

/// Factors for rows of each length, also shorter than a group of 8, from within a row on; tails and several tiles.
#[test]
fn scales_of_tensors_and_rows() {
    let Some(emulator) = emulator() else { return };
    let factor = |row: u64| (0.37 + row as f32) * if row.is_multiple_of(3) { -1e-3 } else { 1.0 };
    for encoding in [Encoding::F8E4M3, Encoding::F8E5M2, Encoding::I8] {
        for float in FLOATS {
            let mut scene = Scene::default();
            for (i, numbers) in [1, 7, 8, 300, 8191, 20_003].into_iter().enumerate() {
                let bytes = random_bytes(numbers, numbers);
                let factors = Scale::tensor(factor(numbers));
                scene.add_scaled(encoding, float, factors, i, &bytes);
                for row_len in [1, 2, 7, 8, 9, 64, 5000, 8192, 10_007, 1 << 30] {
                    for before in [0, 1, row_len - 1, row_len + 3] {
                        let rows = (before + numbers).div_ceil(row_len);
                        let factors: Vec<f32> = (0..rows).map(factor).collect();
                        let scale = Scale::rows(factors, row_len).after(before);
                        scene.add_scaled(encoding, float, scale, i, &bytes);
                    }
                }
            }
            scene.check(emulator, "scaled");
        }
    }
}

#[test]
fn golden_vectors() {
    let Some(emulator) = emulator() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../offload-core/tests/data/quant");
    let mut scene = Scene::default();
    let mut files = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "q") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let encoding = Encoding::from_name(name.split('.').next().unwrap()).unwrap();
        let bytes = fs::read(&path).unwrap();
        files += 1;
        for arrived in FLOATS.map(Float::encoding) {
            if kernels::supports(encoding, arrived) {
                scene.add(encoding, arrived, 1, &bytes);
            }
        }
        if encoding != Encoding::F32 && kernels::supports(encoding, Encoding::F32) {
            let wanted = fs::read(path.with_extension("f32")).unwrap();
            assert_same(
                name,
                Some(Encoding::F32),
                &reference(encoding, Encoding::F32, &bytes),
                &wanted,
            );
        }
    }
    assert!(files >= 50, "the golden vectors are there");
    scene.check(emulator, "golden");
}
