//! Memory offloading for inference engines.
//!
//! A model that does not fit on the device runs as if it did: its blocks wait on the host, encoded as they are stored,
//! and each is brought to the device just before it computes, inside a fixed budget.
//!
//! ```
//! use offload_core::cpu::CpuDevice;
//! use offload_core::encoding::Encoding;
//! use offload_core::executor::{DeviceBudget, Offload};
//! use offload_core::model::PassKind;
//! use offload_core::testing::toy;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = toy::model(&[[256, 256]; 8], &[Encoding::Q8_0], 1); // yours: blocks behind `Swappable`
//! let device = CpuDevice::new();
//! let stream = device.inline_stream();
//! let mut offload =
//!     Offload::builder(&device).model(model).device_budget(DeviceBudget::Least).build()?;
//! println!("{}", offload.plan());
//! for _ in 0..3 {
//!     let mut pass = offload.pass(PassKind::FULL, &stream)?;
//!     while let Some(block) = pass.acquire()? {
//!         let weight = block.tensor("weight")?; // bf16 by now
//!         assert_eq!((weight.shape(), weight.encoding()), (&[256, 256][..], Encoding::BF16));
//!     } // the block's memory may be used for another
//! }
//! assert_eq!(offload.report()?.visits, 24);
//! # Ok(())
//! # }
//! ```
//!
//! # Parts
//!
//! | module | holds | never |
//! |---|---|---|
//! | [`swappable`], [`model`] | what a block is, pass kinds | sees a device or a plan |
//! | [`source`], [`format`](mod@format) | where bytes are, containers | knows a model |
//! | [`encoding`], [`decode`] | how numbers are stored, the reference decoders | reads files |
//! | [`plan`] | what is resident, where all lies, what moves when, how good that is | moves anything |
//! | [`device`] | the contract of a backend | decides anything |
//! | [`host`] | how much host memory there is | takes any |
//! | [`executor`] | runs a plan on a device: passes and leases | plans |
//! | [`cpu`] | the asynchronous reference device | is fast |
//! | [`testing`] | conformance checks, wrappers, toy models | |
//!
//! # Choices and their price
//!
//! - *One allocation.* Residents, window and staging lie in one arena at offsets that the plan fixes. Nothing is
//!   allocated while passes run, and device addresses hold for a generation; but the budget is taken at once, and a new
//!   budget needs a new [`Offload`](executor::Offload).
//! - *A fixed subset is resident.* On a cyclic walk no replacement policy beats it. An engine whose order changes from
//!   pass to pass declares a pass kind for each order.
//! - *Encoded bytes travel.* They are decoded on the device, which costs staging and a pass over device memory and saves
//!   several times its bytes on the wire. Blocks that arrive as they are stored skip it.
//! - *Fences are data.* The plan lists what each operation waits for; the executor only translates. So the planner's
//!   replay, the tests that strip one fence at a time, and the executor all speak of the same list.
//! - *Generic over the device up to the executor, no further.* An engine names its device once; a plan is plain data.
//!
//! Out of scope: training, writing weights back, and choosing kernels.

pub mod cpu;
pub mod decode;
pub mod device;
pub mod encoding;
pub mod executor;
pub mod format;
pub mod host;
pub mod model;
pub mod plan;
pub mod source;
pub mod swappable;
pub mod testing;
