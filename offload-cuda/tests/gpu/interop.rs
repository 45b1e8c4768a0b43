//! An engine on cudarc: its stream computes, and reads tensors as its own slices.

#![expect(unsafe_code, reason = "switches cudarc's own tracking off")]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};
use half::bf16;
use offload_core::encoding::Number;
use offload_core::executor::{ArrivalPolicy, ArrivedTensor, DeviceBudget};
use offload_core::model::PassKind;
use offload_core::testing::conformance::same_numbers;
use offload_cuda::{CudaDevice, LeasedSlice, cudarc};

use crate::streaming::{mixed_model, offload};

/// The bytes of a tensor that arrived as `T`, copied by cudarc.
fn bytes<T: Number + DeviceRepr + bytemuck::NoUninit>(
    tensor: &ArrivedTensor<'_, CudaDevice>,
    stream: &Arc<CudaStream>,
) -> Option<Vec<u8>> {
    let slice = LeasedSlice::<T>::new(tensor, stream)?;
    let numbers = stream.clone_dtoh(&*slice).unwrap();
    stream.synchronize().unwrap();
    Some(bytemuck::cast_slice(&numbers).to_vec())
}

#[test]
fn tensors_are_slices_of_cudarc() {
    let Some(device) = crate::device(|builder| builder.poison(true).jitter(3)) else {
        return;
    };
    let model = mixed_model();
    let expected = crate::engine::expected(&model, &ArrivalPolicy::default());
    let before = device.live_handles();
    for tracking in [true, false] {
        let context = CudaContext::new(0).unwrap();
        if !tracking {
            // SAFETY: all slices of this context are used on one stream.
            unsafe { context.disable_event_tracking() };
        }
        let stream = context.new_stream().unwrap();
        let compute = device.compute_on(&stream).unwrap();
        let mut offload = offload(&device, &model, DeviceBudget::Least, |plan| plan).unwrap();
        let (mut floats, mut halves) = (0, 0);
        for _ in 0..10 {
            let mut pass = offload.pass(PassKind::FULL, &compute).unwrap();
            while let Some(lease) = pass.acquire().unwrap() {
                let expected = expected[lease.block_index()].iter();
                for (name, (float, expected)) in lease.tensor_names().zip(expected) {
                    let tensor = lease.tensor(name).unwrap();
                    let f32 = bytes::<f32>(&tensor, &stream);
                    let bf16 = bytes::<bf16>(&tensor, &stream);
                    floats += usize::from(f32.is_some());
                    halves += usize::from(bf16.is_some());
                    let Some(seen) = f32.or(bf16) else { continue };
                    let same = match float {
                        Some(float) => same_numbers(*float, &seen, expected),
                        None => seen == *expected,
                    };
                    assert!(same, "{name} of block {}", lease.block_index());
                }
            }
        }
        assert!(floats + halves > 50, "{floats} and {halves}");
        // The pass's stream outlives cudarc's own handle of it.
        drop(stream);
        drop(offload.pass(PassKind::FULL, &compute).unwrap());
    }
    assert_eq!(device.live_handles(), before);
}
