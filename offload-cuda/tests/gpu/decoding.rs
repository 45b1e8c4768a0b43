//! What the decode kernel does beyond the checks of the contract: scales, and tensors at the ends of an arena.

use offload_core::decode::{self, Float, Scale};
use offload_core::device::{DecodeEntry, DecodeTable, Device};
use offload_core::encoding::Encoding;
use offload_core::plan::Place;
use offload_core::testing::conformance::same_numbers;
use offload_core::testing::toy::random_bytes;
use offload_cuda::{CudaArena, CudaDevice};

/// Uploads `image` to the beginning of `arena`, decodes, and reads where the entries arrived.
fn decode(
    device: &CudaDevice,
    arena: &CudaArena,
    image: &[u8],
    entries: &[DecodeEntry],
) -> Vec<Vec<u8>> {
    let stream = device.create_stream("decode").unwrap();
    let table = DecodeTable {
        entries: entries.to_vec(),
        staging: None,
    };
    let program = device.prepare(arena, &[table]).unwrap();
    let mut staging = device.allocate_staging(image.len()).unwrap();
    let bytes = device.staging_bytes(&mut staging).unwrap();
    bytes.copy_from_slice(image);
    device
        .upload_staged(&stream, arena, 0, &mut staging, 0..image.len())
        .unwrap();
    device.decode(&stream, arena, &program, 0).unwrap();
    let read = |entry: &DecodeEntry| {
        let view = device.view(arena, entry.place.range());
        device.read(&stream, &view).unwrap()
    };
    entries.iter().map(read).collect()
}

#[test]
fn scales_of_tensors_and_rows_are_multiplied_in() {
    const NUMBERS: u64 = 10_000;
    let Some(device) = crate::device(|builder| builder) else {
        return;
    };
    let rows: Vec<f32> = (0..150u8).map(|row| 0.01 * f32::from(row)).collect();
    // The tensor begins within the third row.
    let rows = Scale::rows(rows, 100).after(250);
    let len = usize::try_from(NUMBERS).unwrap();
    let (mut image, mut entries, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    let mut offset = 1 << 18;
    for encoding in [Encoding::F8E4M3, Encoding::F8E5M2, Encoding::I8] {
        for scale in [Scale::tensor(0.37), rows.clone()] {
            for float in [Float::F32, Float::F16, Float::BF16] {
                let bytes = random_bytes(offset, len);
                let place = Place {
                    offset,
                    bytes: NUMBERS * float.bytes(),
                };
                offset = place.end().next_multiple_of(256);
                let mut numbers = vec![0; usize::try_from(place.bytes).unwrap()];
                decode::decode_scaled_by_definition(encoding, &bytes, &scale, float, &mut numbers)
                    .unwrap();
                expected.push((float, numbers));
                let encoded = Place {
                    offset: image.len() as u64,
                    bytes: NUMBERS,
                };
                image.extend_from_slice(&bytes);
                entries.push(DecodeEntry {
                    encoding,
                    arrived: float.encoding(),
                    scale: Some(scale.clone()),
                    encoded,
                    place,
                });
            }
        }
    }
    assert!(image.len() < 1 << 18);
    let arena = device.allocate_arena(offset).unwrap();
    let arrived = decode(&device, &arena, &image, &entries);
    for ((entry, (float, expected)), arrived) in entries.iter().zip(expected).zip(arrived) {
        assert!(same_numbers(float, &arrived, &expected), "{entry:?}");
    }
}

/// The kernel reads more than a tensor at both of its ends.
#[test]
fn a_tensor_may_end_where_the_arena_ends() {
    let Some(device) = crate::device(|builder| builder) else {
        return;
    };
    let image = random_bytes(4, 1001);
    let arena = device.allocate_arena(1001).unwrap();
    let entry = DecodeEntry {
        encoding: Encoding::U8,
        arrived: Encoding::U8,
        scale: None,
        encoded: Place {
            offset: 990,
            bytes: 11,
        },
        place: Place {
            offset: 256,
            bytes: 11,
        },
    };
    let arrived = decode(&device, &arena, &image, &[entry]);
    assert_eq!(arrived[0], image[990..]);
}
