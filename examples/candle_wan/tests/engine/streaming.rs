//! Whatever the budget, the result is the same to the bit.

use candle_core::Tensor;
use candle_wan::{Engine, Request};
use offload_core::executor::DeviceBudget;
use offload_core::plan::Form;
use offload_wan::{Checkpoint, Recipe, SynthesizeSpec};

use crate::support;

/// What a run gave, its arena's bytes, and how many blocks were streamed in it.
struct Run {
    latents: Tensor,
    arena_bytes: u64,
    streamed: usize,
}

fn run(
    checkpoint: &Checkpoint,
    low: Option<&Checkpoint>,
    budget: DeviceBudget,
    request: &Request,
) -> Run {
    let mut engine = Engine::new(checkpoint, low, budget, request).expect("it fits");
    let latents = engine.sample(|_| ()).expect("the file is whole");
    let plan = engine.offload().plan();
    let blocks = plan.blocks.iter();
    Run {
        latents,
        arena_bytes: plan.arena_bytes,
        streamed: blocks.filter(|block| block.form == Form::Streamed).count(),
    }
}

/// Runs with everything resident, in the least memory, and an eighth and half of the way between, where blocks stay encoded.
fn compare(checkpoint: &Checkpoint, low: Option<&Checkpoint>, blocks: usize, request: &Request) {
    let resident = run(checkpoint, low, DeviceBudget::LeaveFree(0), request);
    let least = run(checkpoint, low, DeviceBudget::Least, request);
    let more = resident.arena_bytes - least.arena_bytes;
    let at = |bytes| run(checkpoint, low, DeviceBudget::Bytes(bytes), request);
    let [some, half] = [8, 2].map(|part| at(least.arena_bytes + more / part));
    assert_eq!(resident.streamed, 0);
    assert_eq!(least.streamed, blocks);
    assert!(
        0 < some.streamed && some.streamed < blocks,
        "{}",
        some.streamed
    );
    assert!(half.streamed < some.streamed);
    assert!(least.arena_bytes < some.arena_bytes && half.arena_bytes < resident.arena_bytes);
    for run in [least, some, half] {
        assert!(support::bits(&run.latents) == support::bits(&resident.latents));
    }
}

#[test]
fn a_streamed_run_gives_the_bits_of_a_resident_one() {
    let folder = tempfile::tempdir().unwrap();
    let spec = support::spec("wan2.1-t2v-1.3b", Recipe::Q4KM, 6, 8);
    let checkpoint = Checkpoint::open(support::write(&spec, folder.path(), "t2v.gguf")).unwrap();
    compare(&checkpoint, None, 8, &support::request());
    let guided = Request {
        guidance: 3.0,
        ..support::request()
    };
    compare(&checkpoint, None, 8, &guided);
}

#[test]
fn guidance_and_seed_have_an_effect() {
    let folder = tempfile::tempdir().unwrap();
    let spec = support::spec("wan2.1-t2v-1.3b", Recipe::BF16, 6, 2);
    let checkpoint = Checkpoint::open(support::write(&spec, folder.path(), "t2v.gguf")).unwrap();
    let bits = |request: &Request| {
        support::bits(&run(&checkpoint, None, DeviceBudget::Least, request).latents)
    };
    let plain = support::request();
    let guided = Request {
        guidance: 3.0,
        ..plain.clone()
    };
    let other = Request {
        seed: 4,
        ..plain.clone()
    };
    assert!(bits(&plain) == bits(&plain));
    assert!(bits(&plain) != bits(&guided));
    assert!(bits(&plain) != bits(&other));
}

#[test]
fn a_pair_of_experts_changes_at_the_boundary() {
    let folder = tempfile::tempdir().unwrap();
    let spec = |seed| SynthesizeSpec {
        seed,
        ..support::spec("wan2.2-t2v-a14b", Recipe::Q8_0, 20, 4)
    };
    let [high, low] =
        [(1, "t2v_high_noise.gguf"), (2, "t2v_low_noise.gguf")].map(|(seed, name)| {
            Checkpoint::open(support::write(&spec(seed), folder.path(), name)).unwrap()
        });
    let request = support::request();
    compare(&high, Some(&low), 8, &request);

    // Of the levels 1, 0.909 and 0.714 the first two are the expert's for high noise.
    let pair = run(&high, Some(&low), DeviceBudget::Least, &request).latents;
    let levels = candle_wan::sampler::noise_levels(request.steps, request.shift);
    let mut engines = [&high, &low]
        .map(|checkpoint| Engine::new(checkpoint, None, DeviceBudget::Least, &request).unwrap());
    let (mut latents, conditions) = request.inputs(engines[0].config()).unwrap();
    for (step, expert) in [0, 0, 1].into_iter().enumerate() {
        let full = offload_core::model::PassKind::FULL;
        let timestep = levels[step] * 1000.0;
        let velocity = engines[expert].velocity((full, None), &latents, timestep, &conditions);
        let change = (velocity.unwrap() * (levels[step + 1] - levels[step])).unwrap();
        latents = (latents + change).unwrap();
    }
    assert!(support::bits(&pair) == support::bits(&latents));

    let earlier = Request {
        boundary: Some(0.95),
        ..request
    };
    let earlier = run(&high, Some(&low), DeviceBudget::Least, &earlier).latents;
    assert!(support::bits(&pair) != support::bits(&earlier));
}
