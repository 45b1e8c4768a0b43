//! Tensors with a scale beside them, against what numpy and ml_dtypes make of the same bytes
//! (`data/make_scaled.py`), decoded alone and through the executor.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use offload_core::cpu::CpuDevice;
use offload_core::decode::{DecodeError, Float, Scale, decode, decode_scaled, is_scalable};
use offload_core::encoding::Encoding;
use offload_core::executor::{Arrival, ArrivalPolicy, DeviceBudget, Offload};
use offload_core::model::{Model, PassKind};
use offload_core::swappable::{SpecError, Swappable, TensorSpec};
use offload_core::testing::toy::{self, ToyBlock};

const SCALABLE: [Encoding; 3] = [Encoding::F8E4M3, Encoding::F8E5M2, Encoding::I8];
const FLOATS: [(Float, &str); 3] = [
    (Float::F32, "f32"),
    (Float::F16, "f16"),
    (Float::BF16, "bf16"),
];
const ROW: usize = 256;

fn golden(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/scaled");
    fs::read(folder.join(name)).unwrap()
}

fn factors() -> Vec<f32> {
    let bytes = golden("scale.f32");
    let factors = bytes.as_chunks::<4>().0.iter();
    factors.map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// Every code, once for each factor.
fn codes() -> Vec<u8> {
    factors().iter().flat_map(|_| 0..=255).collect()
}

fn is_nan(float: Float, bytes: &[u8]) -> bool {
    match float {
        Float::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        Float::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        Float::BF16 => bf16::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
    }
}

/// Compares bits, NaN as a class.
fn assert_same(what: &str, float: Float, got: &[u8], wanted: &[u8]) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let width = usize::try_from(float.bytes()).unwrap();
    let pairs = got.chunks_exact(width).zip(wanted.chunks_exact(width));
    for (i, (got, wanted)) in pairs.enumerate() {
        assert!(
            got == wanted || (is_nan(float, got) && is_nan(float, wanted)),
            "{what} to {float}: number {i} is {got:02x?}, not {wanted:02x?}"
        );
    }
}

fn decoded(encoding: Encoding, encoded: &[u8], scale: &Scale, float: Float) -> Vec<u8> {
    let mut arrived = vec![0xaa; encoded.len() * usize::try_from(float.bytes()).unwrap()];
    decode_scaled(encoding, encoded, scale, float, &mut arrived).unwrap();
    arrived
}

#[test]
fn every_code_times_every_factor_is_what_numpy_has() {
    let scale = Scale::rows(factors(), ROW as u64);
    for encoding in SCALABLE {
        for (float, extension) in FLOATS {
            let wanted = golden(&format!("{encoding}.{extension}"));
            let got = decoded(encoding, &codes(), &scale, float);
            assert_same(encoding.name(), float, &got, &wanted);
        }
    }
}

#[test]
fn one_factor_for_a_tensor_is_that_factor_for_each_row() {
    for encoding in SCALABLE {
        for (float, extension) in FLOATS {
            let wanted = golden(&format!("{encoding}.{extension}"));
            let rows = wanted.chunks_exact(ROW * usize::try_from(float.bytes()).unwrap());
            for (factor, wanted) in factors().into_iter().zip(rows) {
                let codes: Vec<u8> = (0..=255).collect();
                let got = decoded(encoding, &codes, &Scale::tensor(factor), float);
                assert_same(encoding.name(), float, &got, wanted);
            }
        }
    }
}

#[test]
fn a_part_of_a_tensor_takes_the_factors_of_its_numbers() {
    let (codes, scale) = (codes(), Scale::rows(factors(), ROW as u64));
    let whole = decoded(Encoding::I8, &codes, &scale, Float::BF16);
    for (from, to) in [
        (0, 1),
        (255, 257),
        (3, 4000),
        (512, 768),
        (4095, 4096),
        (4096, 4096),
    ] {
        let part = scale.after(from as u64);
        assert_eq!(part.numbers(), Some((codes.len() - from) as u64));
        let got = decoded(Encoding::I8, &codes[from..to], &part, Float::BF16);
        assert_same("part", Float::BF16, &got, &whole[2 * from..2 * to]);
    }
    assert_eq!(Scale::tensor(2.0).after(u64::MAX).after(1).numbers(), None);
    let got = decoded(
        Encoding::I8,
        &[3],
        &Scale::tensor(2.0).after(u64::MAX),
        Float::F32,
    );
    assert_eq!(got, 6f32.to_le_bytes());
}

#[test]
fn a_factor_of_one_changes_no_float() {
    for encoding in [Encoding::F8E4M3, Encoding::F8E5M2] {
        let codes: Vec<u8> = (0..=255).collect();
        for (float, _) in FLOATS {
            let mut plain = vec![0; 256 * usize::try_from(float.bytes()).unwrap()];
            decode(encoding, &codes, float, &mut plain).unwrap();
            let got = decoded(encoding, &codes, &Scale::tensor(1.0), float);
            assert_same(encoding.name(), float, &got, &plain);
        }
    }
}

#[test]
fn only_eight_bit_numbers_take_a_scale() {
    for &encoding in Encoding::ALL {
        assert_eq!(
            is_scalable(encoding),
            SCALABLE.contains(&encoding),
            "{encoding}"
        );
        if !is_scalable(encoding) {
            let refused = decode_scaled(encoding, &[], &Scale::tensor(1.0), Float::F32, &mut []);
            assert_eq!(refused, Err(DecodeError::Unsupported { encoding }));
        }
    }
}

#[test]
#[should_panic(expected = "contract: 257 numbers with factors for 256")]
fn too_few_factors_break_the_contract() {
    let scale = Scale::rows([1.0], 256);
    let _ = decode_scaled(
        Encoding::I8,
        &[0; 257],
        &scale,
        Float::F32,
        &mut [0; 4 * 257],
    );
}

#[test]
fn a_tensor_takes_a_scale_that_fits_it() {
    let tensor = |encoding| toy::tensor("w", &[4, 32], encoding, 1);
    let scaled = tensor(Encoding::I8).with_scale(Scale::rows([1.0; 4], 32));
    assert_eq!(scaled.unwrap().scale().unwrap().numbers(), Some(128));
    let refused = tensor(Encoding::F8E4M3).with_scale(Scale::rows([1.0; 3], 32));
    assert!(matches!(
        refused,
        Err(SpecError::Scale {
            scaled: 96,
            elements: 128,
            ..
        })
    ));
    let refused = tensor(Encoding::Q8_0)
        .with_scale(Scale::tensor(1.0))
        .unwrap_err();
    assert_eq!(refused.to_string(), "tensor w: Q8_0 takes no scale");
}

/// A tensor of each encoding, large enough that residents are loaded in several pieces that begin within a row.
fn block(index: usize) -> (ToyBlock, Vec<(Encoding, Vec<u8>, Scale)>) {
    let (rows, row_len) = (300, 1000);
    let scales = [
        Scale::tensor(0.37),
        Scale::rows(
            (0..rows).map(|row| 0.01 * row as f32).collect::<Vec<_>>(),
            row_len,
        ),
        Scale::rows(
            (0..rows).map(|row| 0.7 - row as f32).collect::<Vec<_>>(),
            row_len,
        ),
    ];
    let (mut specs, mut tensors) = (Vec::new(), Vec::new());
    for (encoding, scale) in SCALABLE.into_iter().zip(scales) {
        let bytes = toy::random_bytes(index as u64, usize::try_from(rows * row_len).unwrap());
        let source = bytes::Bytes::from(bytes.clone());
        let spec = TensorSpec::new(encoding.name(), [rows, row_len], encoding, source).unwrap();
        specs.push(spec.with_scale(scale.clone()).unwrap());
        tensors.push((encoding, bytes, scale));
    }
    (ToyBlock::new(format!("block.{index}"), specs), tensors)
}

fn arrives_through_the_executor(arrival: Arrival, budget: DeviceBudget) {
    let (device, count) = (CpuDevice::new(), 3);
    let (blocks, tensors): (Vec<_>, Vec<_>) = (0..count).map(block).unzip();
    let blocks = blocks
        .into_iter()
        .map(|block| Arc::new(block) as Arc<dyn Swappable>);
    let stream = device.inline_stream();
    let mut offload = Offload::builder(&device)
        .model(Model::new(blocks.collect()).unwrap())
        .arrival(ArrivalPolicy {
            matrices: arrival,
            vectors: arrival,
        })
        .device_budget(budget)
        .build()
        .unwrap();
    for _ in 0..2 {
        let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
        while let Some(lease) = pass.acquire().unwrap() {
            for (encoding, bytes, scale) in &tensors[lease.block_index()] {
                let arrived = lease.tensor(encoding.name()).unwrap();
                let got = arrived.host_bytes().unwrap();
                match arrival {
                    Arrival::Stored => assert_eq!(got, bytes, "{encoding}"),
                    Arrival::Decoded(float) => {
                        let wanted = decoded(*encoding, bytes, scale, float);
                        assert_same(encoding.name(), float, got, &wanted);
                    }
                }
            }
        }
    }
}

#[test]
fn scaled_tensors_arrive_scaled_resident_and_streamed_and_as_stored_without() {
    for arrival in [
        Arrival::Decoded(Float::BF16),
        Arrival::Decoded(Float::F32),
        Arrival::Stored,
    ] {
        arrives_through_the_executor(arrival, DeviceBudget::Least);
        arrives_through_the_executor(arrival, DeviceBudget::gib(1));
    }
}
